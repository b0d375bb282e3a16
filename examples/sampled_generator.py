"""How masks follow requests when their generator is trained on a sample of the items, beside one trained on all.

The values of the sampled items alone are made, from their descriptions. Users' validation items are ranked; test items
are not looked at.

python examples/sampled_generator.py --data movielens-100k --negatives 512 128 --steps 300 --epochs 10
"""

from __future__ import annotations

import argparse

import torch
from training_profile import made_up

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.splits import leave_one_out
from cramer_peft.recsys.evaluation.results import mean_metrics
from cramer_peft.recsys.evaluation.tracks import Track, mixed_tracks
from cramer_peft.recsys.evaluation.users import EvaluationUsers, mask_scorer
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.requests.attribute_requests import RequestGenerator
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.requests.wordings import TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions

SHOWN = ("ndcg", "satisfaction", "violation", "overlap_empty")


def assess(masks: RequestMaskModel, users: EvaluationUsers, tracks: dict[str, Track]) -> dict[str, float]:
    """Metrics of the masks."""
    return mean_metrics(mask_scorer(masks), mask_scorer(masks), users, tracks)


def main() -> None:
    """Print a table of metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set's name or folder; left out: made-up data")
    parser.add_argument("--negatives", type=int, nargs="*", default=[16])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1, help="of the backbone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data is None:
        catalogue, split = made_up(users=40, items=60, attributes=6, events=20)
    else:
        catalogue, interactions = load_dataset(arguments.data)
        split = leave_one_out(interactions)
    backbone = train_backbone("sasrec", catalogue, split, BackboneOptions(epochs=arguments.epochs), progress=False)
    encoder = request_encoder(None, catalogue, backbone)
    users = EvaluationUsers.of(catalogue, split, "validation", backbone.max_length)
    tracks = mixed_tracks(users, RequestGenerator(catalogue.attributes, TRAIN_TEMPLATES), seed=0)
    print(f"{'items':<18}" + "".join(f"{name:>15}" for name in SHOWN))
    unmoved = True
    for negatives in [None, *arguments.negatives]:
        torch.manual_seed(arguments.seed)
        masks = mask_backbone(backbone, catalogue, encoder=encoder)
        if negatives is None:
            untrained = assess(masks, users, tracks)
            print(f"{'untrained':<18}" + "".join(f"{untrained[name]:>15.4f}" for name in SHOWN), flush=True)
        options = GeneratorOptions(steps=arguments.steps)
        train_generator(masks, catalogue, split, options, arguments.seed, False, negatives=negatives)
        found = assess(masks, users, tracks)
        label = f"all {len(catalogue)}" if negatives is None else f"{negatives} and targets"
        print(f"{label:<18}" + "".join(f"{found[name]:>15.4f}" for name in SHOWN), flush=True)
        unmoved &= found["overlap_blank"] >= 0.9
        masks.unload()
    print(f"a blank request leaves the lists as they are: {unmoved}")


if __name__ == "__main__":
    main()
