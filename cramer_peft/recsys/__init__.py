"""Recommenders that answer requests, built on the public names of :mod:`cramer_peft`.

The names are imported on first use: many need PyTorch's and transformers' heavy modules, some the extra ``demo``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cramer_peft.recsys.backbones import config_for, save_backbone
    from cramer_peft.recsys.data.catalogue import Catalogue
    from cramer_peft.recsys.data.datasets import load_dataset
    from cramer_peft.recsys.data.splits import leave_one_out, temporal_split
    from cramer_peft.recsys.data.tables import Tables
    from cramer_peft.recsys.recommender import RequestRecommender, evaluate_recommender
    from cramer_peft.recsys.requests.request_encoders import request_encoder
    from cramer_peft.recsys.requests.sources import RequestSource, SaidSource
    from cramer_peft.recsys.scoring.dataset import score_dataset
    from cramer_peft.recsys.scoring.scorer import ListOptions, ListScorer
    from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
    from cramer_peft.recsys.training.generator_training import train_generator
    from cramer_peft.recsys.training.recommender_training import TrainOptions, train_recommender
    from cramer_peft.recsys.training.request_batches import GeneratorOptions

_MODULES = {
    "backbones": ("config_for", "save_backbone"),
    "data.catalogue": ("Catalogue",),
    "data.datasets": ("load_dataset",),
    "data.splits": ("leave_one_out", "temporal_split"),
    "data.tables": ("Tables",),
    "recommender": ("RequestRecommender", "evaluate_recommender"),
    "requests.request_encoders": ("request_encoder",),
    "requests.sources": ("RequestSource", "SaidSource"),
    "scoring.dataset": ("score_dataset",),
    "scoring.scorer": ("ListOptions", "ListScorer"),
    "training.backbone_training": ("BackboneOptions", "train_backbone"),
    "training.generator_training": ("train_generator",),
    "training.recommender_training": ("TrainOptions", "train_recommender"),
    "training.request_batches": ("GeneratorOptions",),
}

__all__ = [
    "BackboneOptions",
    "Catalogue",
    "GeneratorOptions",
    "ListOptions",
    "ListScorer",
    "RequestRecommender",
    "RequestSource",
    "SaidSource",
    "Tables",
    "TrainOptions",
    "config_for",
    "evaluate_recommender",
    "leave_one_out",
    "load_dataset",
    "request_encoder",
    "save_backbone",
    "score_dataset",
    "temporal_split",
    "train_backbone",
    "train_generator",
    "train_recommender",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
