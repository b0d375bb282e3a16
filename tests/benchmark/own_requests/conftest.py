"""A made-up shop whose visits state what they are for."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

_shared = runpy.run_path(str(Path(__file__).parents[2] / "recsys" / "conftest.py"))
globals().update({name: value for name, value in _shared.items() if not name.startswith("__")})

TOPICS = ("lamp", "tent", "kettle", "rope", "drum", "rug")
WORDS = ("red", "blue", "big", "small", "old", "new", "soft", "hard")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 items of six topics; seven visits in ten say which topic they want, whatever the user had before."""
    pytest.importorskip("pandas")
    rng, folder = random.Random(0), tmp_path_factory.mktemp("shops") / "shop"
    folder.mkdir()
    items = [f"i{item}\t{WORDS[item // 6]} {TOPICS[item % 6]}\t{TOPICS[item % 6]} thing" for item in range(48)]
    (folder / "shop.item").write_text(
        "\n".join(["item_id:token\ttitle:token_seq\tcategories:token_seq", *items]) + "\n"
    )
    lines = ["user_id:token\titem_id:token\ttimestamp:float\trequest:token_seq"]
    for user in range(60):
        seen: set[int] = set()
        for time in range(7):
            topic = rng.randrange(6)
            item = rng.choice([item for item in range(topic, 48, 6) if item not in seen])
            seen.add(item)
            text = rng.choice(["{} please", "need a {}", "{}"]).format(TOPICS[topic]) if rng.random() < 0.7 else ""
            lines.append(f"u{user}\ti{item}\t{time}\t{text}")
    (folder / "shop.inter").write_text("\n".join(lines) + "\n")
    return folder
