"""Time ``score_dataset`` over made-up rows: the plain loop of this process, and Ray's actors beside it.

    python examples/score_rows.py --rows 1000000 --actors 2  # a recommender of 200 items, made here
    python examples/score_rows.py --recommender demo-output --rows 100000 --actors 2

Both must write the same files, and a list for every user. It needs ``cramer-peft[ray]``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cramer_peft import RequestMaskConfig
from cramer_peft.recsys import Catalogue, RequestRecommender, save_backbone, score_dataset
from cramer_peft.recsys.backbones import make_backbone
from cramer_peft.recsys.masks import mask_backbone

WORDINGS = ("more {}", "no {}", "something {} please", "I feel like {} tonight", "anything but {}")
FILE_ROWS = 250_000


def make_tiny(folder: Path, items: int = 200) -> Path:
    """Write a recommender with random weights, whose lists mean nothing but take their time."""
    torch.manual_seed(0)
    attributes = tuple(f"genre{number}" for number in range(10))
    flags = torch.rand(items, len(attributes)) < 0.2
    ids = tuple(f"i{number}" for number in range(items))
    catalogue = Catalogue(ids, tuple(f"Title {number}" for number in range(items)), attributes, flags)
    backbone = make_backbone("gru4rec", items, hidden_size=16)
    save_backbone(backbone, folder, catalogue)  # type: ignore[arg-type]
    config = RequestMaskConfig(encoder="hashing", encoder_options={"dim": 16}, init_weights=False)
    RequestRecommender(mask_backbone(backbone, catalogue, config), catalogue).save(folder)
    return folder


def make_rows(folder: Path, catalogue: Catalogue, count: int) -> None:
    """Write rows of 5 to 30 items; half of them ask for one of some hundred texts."""
    rng = random.Random(0)
    folder.mkdir()
    texts = [wording.format(name) for wording in WORDINGS for name in catalogue.attributes]
    for start in range(0, count, FILE_ROWS):
        users = range(start, min(start + FILE_ROWS, count))
        table = {
            "user": list(users),
            "history": [rng.choices(catalogue.item_ids, k=rng.randint(5, 30)) for _ in users],
            "request": [rng.choice(texts) if rng.random() < 0.5 else None for _ in users],
        }
        pq.write_table(pa.table(table), folder / f"rows-{start}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recommender", type=Path, help="folder that train or demo wrote; by default one is made")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--actors", type=int, default=0, help="by default the plain loop alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in the actors
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        recommender = arguments.recommender or make_tiny(place / "tiny")
        make_rows(place / "rows", RequestRecommender.load(recommender).catalogue, arguments.rows)
        lists = []
        for actors in sorted({0, arguments.actors}):
            output = place / f"{actors}-actors"
            cpu = time.process_time()
            done = score_dataset(recommender, place / "rows", output, actors=actors)
            cpu = time.process_time() - cpu
            name = f"{actors} actors" if actors else f"plain loop ({cpu:.0f} s of CPU)"
            rate = f"{done.rows / done.seconds:,.0f} rows a second"
            print(f"{name}: {done.rows:,} rows in {done.seconds:.0f} s, {rate}", flush=True)
            lists.append({path.name: path.read_bytes() for path in (output / "lists").iterdir()})
        users = pq.read_table(output / "lists", columns=["user"])["user"]
        same = lists[0] == lists[-1] and len(users.unique()) == arguments.rows
        print(f"every way writes the same files, and a list for every user: {same}")


if __name__ == "__main__":
    main()
