"""Wrap a recommender of your own, train its request generator with ``transformers.Trainer``, save and load it.

The data are simulated: items have genres, users have two favourite genres, and a user's request names one genre of
the item that comes next. Run it as it stands; it needs no network and no extra.
"""

from __future__ import annotations

import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks

GENRES = ["horror", "comedy", "romance", "western", "crime", "fantasy"]
TRAIN_WORDINGS = ["more {}", "I feel like {} tonight", "show me some {} please", "{}", "I want {}", "any good {}?"]
TEST_WORDINGS = ["let us watch {} for once", "my choice is {}"]  # not among those in training
ITEMS, HISTORY, WIDTH = 120, 8, 32


class Recommender(nn.Module):
    """Attention over the history, then a feed-forward block; scores are dot products with the items."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, WIDTH)
        nn.init.normal_(self.items.weight, std=0.1)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, histories: Tensor, next_item: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        seen = self.items(histories)
        query = self.query(seen[:, -1:])
        weights = torch.softmax(query @ self.key(seen).transpose(1, 2) / WIDTH**0.5, dim=-1)
        state = self.norm(seen.mean(1) + self.attention_out(weights @ self.value(seen))[:, 0])
        state = state + self.down(torch.relu(self.up(state)))
        scores = state @ self.items.weight.T
        return scores if next_item is None else {"loss": cross_entropy(scores, next_item), "scores": scores}


def make_data(users: int, genres: Tensor, wordings: list[str], seed: int) -> list[dict[str, Any]]:
    """Return a history from two favourite genres, the next item (half the time of any genre) and a request per user."""
    rng = random.Random(seed)
    of_genre = [genres[:, g].nonzero().flatten().tolist() for g in range(len(GENRES))]
    rows = []
    for _ in range(users):
        favourites = rng.sample(range(len(GENRES)), 2)
        history = [rng.choice(of_genre[rng.choice(favourites)]) for _ in range(HISTORY)]
        genre = rng.choice(favourites) if rng.random() < 0.5 else rng.randrange(len(GENRES))
        request = rng.choice(wordings).format(GENRES[genre])
        rows.append(
            {"histories": history, "next_item": rng.choice(of_genre[genre]), "request": request, "genre": genre}
        )
    return rows


def collate(rows: list[dict[str, Any]], with_request: bool = True) -> dict[str, Any]:
    """Return a batch: tensors for the model, and one request text for each row."""
    batch: dict[str, Any] = {name: torch.tensor([row[name] for row in rows]) for name in ("histories", "next_item")}
    return {**batch, "request": [row["request"] for row in rows]} if with_request else batch


def train(model: nn.Module, rows: list[dict[str, Any]], epochs: int, rate: float, with_request: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            learning_rate=rate,
            per_device_train_batch_size=128,
            remove_unused_columns=False,  # or the Trainer would drop "request", which forward() does not name
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(
            model=model, args=arguments, train_dataset=rows, data_collator=lambda batch: collate(batch, with_request)
        ).train()
    model.eval()


@torch.no_grad()
def measure(model: nn.Module, rows: list[dict[str, Any]], genres: Tensor, with_request: bool) -> tuple[float, float]:
    """Return HR@10 of the next item, and the share of the top ten that has the requested genre."""
    batch = collate(rows)
    scores = model(batch["histories"], request=batch["request"] if with_request else None)
    top = scores.topk(10).indices
    hits = (top == batch["next_item"][:, None]).any(1).float().mean()
    wanted = genres[top, torch.tensor([row["genre"] for row in rows])[:, None]].float().mean()
    return float(hits), float(wanted)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    genres = torch.zeros(ITEMS, len(GENRES), dtype=torch.bool)
    genres.scatter_(1, torch.rand(ITEMS, len(GENRES)).topk(2).indices, True)
    train_rows = make_data(20_000, genres, TRAIN_WORDINGS, seed=1)
    test_rows = make_data(1000, genres, TEST_WORDINGS, seed=2)
    histories = torch.tensor([row["histories"] for row in test_rows])

    # A recommender, trained without any request. From here on it is frozen. Injection would freeze it, too, but the
    # scores below are compared bit for bit, and torch may round a product differently if a weight requires gradients.
    model = Recommender()
    train(model, train_rows, epochs=4, rate=3e-3, with_request=False)
    model.requires_grad_(False)
    untouched = copy.deepcopy(model)
    with torch.no_grad():
        frozen = model(histories)

    # Three of its six linear layers get masks. "hashing" stands in for an encoder that knows what words mean.
    config = RequestMaskConfig(
        target_modules=["attention_out", "up", "down"],
        gate="low_rank",
        rank=2,
        generator_width=None,
        encoder="hashing",
        encoder_options={"dim": 128},
    )
    masks = inject_request_masks(model, config)
    hits_before, wanted_before = measure(masks, test_rows, genres, with_request=False)

    # Only the generator has gradients. The handle is what the Trainer trains, not the model inside it.
    train(masks, train_rows, epochs=6, rate=3e-3, with_request=True)
    hits_after, wanted_after = measure(masks, test_rows, genres, with_request=True)
    print(f"HR@10: frozen {hits_before:.3f}, under requests {hits_after:.3f}")
    print(f"share of the top ten that has the requested genre: {wanted_before:.3f}, under requests {wanted_after:.3f}")
    assert hits_after > 1.3 * hits_before
    assert wanted_after > 1.5 * wanted_before

    # One request for each row; a row without one is the frozen model's, bit for bit.
    with torch.no_grad():
        mixed = masks(histories[:3], request=["more horror", None, "more comedy"])
        assert torch.equal(mixed[1], model(histories[:3])[1])
        assert not torch.equal(mixed[0], model(histories[:3])[0])
        western = masks(histories, request="my choice is western")
        assert torch.equal(masks(histories), frozen)
    print("a row without a request equals the frozen model's: True")

    with tempfile.TemporaryDirectory() as folder:
        masks.save_pretrained(folder)
        print("saved:", ", ".join(sorted(path.name for path in Path(folder).iterdir())))

        # Unloading gives back the very model that went in.
        assert masks.unload() is model
        check_restored(model, untouched, histories, frozen)

        loaded = load_request_masks(model, folder)
        with torch.no_grad():
            same = torch.equal(loaded(histories, request="my choice is western"), western)
        assert same
        print(f"loaded from files, same scores: {same}")


def check_restored(model: nn.Module, untouched: nn.Module, histories: Tensor, frozen: Tensor) -> None:
    """Check that a model has the scores and weights that it had before it was masked."""
    with torch.no_grad():
        restored = torch.equal(model(histories), frozen)
    restored &= all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
    assert restored
    print(f"restored by unload, bit for bit: {restored}")


if __name__ == "__main__":
    main()
