"""Control, cost and memory on a made-up shop with known attributes, at any number of items.

    python examples/large_catalogue.py --items 100000 --shoppers 3000 --users 300 --epochs 3 --steps 300

Both trainings see samples of the items; every figure is over the whole catalogue. All requests are simulated.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from cramer_peft import RequestMaskModel
from cramer_peft.recsys.data.own_data import OwnData, load_own_data
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import evaluate_masks
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.training.backbone_training import BackboneOptions, train_backbone
from cramer_peft.recsys.training.generator_training import train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions

# fmt: off
ATTRIBUTES = [
    "horror", "comedy", "romance", "western", "drama", "war", "animation", "musical", "thriller", "crime", "fantasy",
    "mystery", "sport", "history", "family", "adventure", "documentary", "space", "detective", "vampire",
]
# fmt: on


def write_shop(folder: Path, items: int, users: int, seed: int) -> None:
    """Write atomic files: items with two attributes each, users who like two attributes and what is popular."""
    rng = random.Random(seed)
    having: dict[str, list[int]] = {name: [] for name in ATTRIBUTES}
    with (folder / "shop.item").open("w") as file:
        file.write("item_id:token\ttitle:token_seq\tgenres:token_seq\n")
        for item in range(items):
            own = rng.sample(ATTRIBUTES, 2)
            for name in own:
                having[name].append(item)
            file.write(f"{item}\tItem number {item}\t{' '.join(own)}\n")
    with (folder / "shop.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user in range(users):
            liked, seen = rng.sample(ATTRIBUTES, 2), set()
            for place in range(rng.randint(8, 25)):
                pool = having[rng.choice(liked)] if rng.random() < 0.8 else range(items)
                item = pool[int(len(pool) * rng.random() ** 3)]
                if item not in seen:
                    seen.add(item)
                    file.write(f"{user}\t{item}\t{place}\n")


def cost(masks: RequestMaskModel, item_ids: Tensor, repeats: int) -> float:
    """Return the time of a forward under as many different requests as rows over the frozen one, the median ratio."""
    requests = torch.randn(len(item_ids), masks.generator.request_dim)
    ratios = []
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            masks(item_ids, request=None)
            middle = time.perf_counter()
            masks(item_ids, request=requests)
            ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios[1:])


def run(options: argparse.Namespace, data: OwnData) -> dict[str, str]:
    """Train both on samples, and measure."""
    start, catalogue = time.perf_counter(), data.catalogue
    print("training the backbone", file=sys.stderr)
    settings = BackboneOptions(epochs=options.epochs, patience=options.epochs)
    backbone = train_backbone("sasrec", catalogue, data.split, settings, options.seed, progress=sys.stderr.isatty())
    torch.manual_seed(options.seed)
    masks = mask_backbone(backbone, catalogue, encoder=request_encoder(None, catalogue, backbone))
    print("training the generator", file=sys.stderr)
    steps = GeneratorOptions(steps=options.steps)
    train_generator(masks, catalogue, data.split, steps, options.seed, progress=sys.stderr.isatty())
    trained = time.perf_counter() - start
    print("evaluating", file=sys.stderr)
    tracks = evaluate_masks(masks, data, "test", users=options.users)
    gain, favourite = tracks["for"].ratios["normalised_gain"], tracks["against favourite"].ratios["ratio"]
    rows = torch.randint(1, len(catalogue) + 1, (256, 50))
    return {
        "items": f"{len(catalogue):,}",
        "parameters of the generator": f"{sum(p.numel() for p in masks.generator.parameters()):,}",
        "for: gain": "none" if gain is None else f"{gain.estimate:.3f}",
        "favourite: ratio": "none" if favourite is None else f"{favourite.estimate:.3f}",
        "256 requests, ratio to frozen": f"{cost(masks, rows, options.repeats):.2f}",
        "training, s": f"{trained:.0f}",
        "peak memory, MB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}",
    }


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--shoppers", type=int, default=200, help="users in the data")
    parser.add_argument("--users", type=int, default=30, help="users who are measured")
    parser.add_argument("--epochs", type=int, default=1, help="of the backbone")
    parser.add_argument("--steps", type=int, default=10, help="of the generator")
    parser.add_argument("--repeats", type=int, default=5, help="of the timing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shop(Path(folder), options.items, options.shoppers, options.seed)
        data = load_own_data(folder, "leave-one-out")
        for name, value in run(options, data).items():
            print(f"{name:32} {value}")
    print("the whole catalogue was ranked")


if __name__ == "__main__":
    main()
