"""Sequential recommenders to adapt, all behind one interface, :class:`Backbone`."""

from cramer_peft.recsys.backbones.backbone import PADDING, Backbone, config_for
from cramer_peft.recsys.backbones.bert4rec import BERT4Rec
from cramer_peft.recsys.backbones.gru4rec import GRU4Rec
from cramer_peft.recsys.backbones.kinds import BACKBONES, load_backbone, load_checkpoint, make_backbone, save_backbone
from cramer_peft.recsys.backbones.own import ItemScorer, OwnBackbone, padded_left
from cramer_peft.recsys.backbones.replay import ReplaySASRec
from cramer_peft.recsys.backbones.sasrec import SASRec
from cramer_peft.recsys.backbones.stored import StoredBackbone

__all__ = [
    "BACKBONES",
    "PADDING",
    "BERT4Rec",
    "Backbone",
    "GRU4Rec",
    "ItemScorer",
    "OwnBackbone",
    "ReplaySASRec",
    "SASRec",
    "StoredBackbone",
    "config_for",
    "load_backbone",
    "load_checkpoint",
    "make_backbone",
    "padded_left",
    "save_backbone",
]
