"""The tiny models of the fixtures, and what is run on them.

The script that writes the fixtures and the test that reads them both call this module, so that an old and a new
version of the package do the same. It imports nothing of the package and uses only what all versions have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

VECTOR_WIDTH = 8
TEXTS = ("more horror, please", "nothing sad", "something old and something new")
GENERATOR = "base_model.request_mask_generator."


class Linear(nn.Module):
    """Two linear layers, one without a bias, and a third one that no mask is for."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.down(torch.relu(self.up(x))))


class Gpt2Linear(nn.Module):
    """A linear layer as GPT-2 stores it, with the weight as (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Conv1D(12, 8)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(x)))


class Attention(nn.Module):
    """Self-attention of two heads, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


class Recurrent(nn.Module):
    """A GRU, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(x)[0])


class Convolution(nn.Module):
    """An embedding of ids, a convolution over the positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.convolution = nn.Conv1d(8, 6, 3, padding=1)
        self.out = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.convolution(self.embedding(x).transpose(1, 2)).transpose(1, 2))


MODELS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Linear, Gpt2Linear, Attention, Recurrent, Convolution)
}


def draw_inputs(model: str) -> dict[str, Tensor]:
    """Two batches of three rows; at the longer one ``low_rank`` changes weights instead of adding terms."""
    shapes = {"short": (3, 2), "long": (3, 9)}
    if model == "Convolution":
        return {name: torch.randint(20, shape) for name, shape in shapes.items()}
    return {name: torch.randn(*shape, 8) for name, shape in shapes.items()}


def masked_outputs(
    masks: Any, inputs: Mapping[str, Tensor], vectors: Tensor, state: Any, texts: bool, strength: bool
) -> dict[str, Tensor]:
    """Outputs of an adapted model under every kind of request, and the gates' values.

    Args:
        masks: The handle.
        inputs: Batches of three rows, by name.
        vectors: Three ready request vectors.
        state: A mask state of three rows.
        texts: Whether the adapter has an encoder.
        strength: Whether its gates know a strength.
    """
    rows = [vectors[0], None, vectors[2]]
    requests: dict[str, dict[str, Any]] = {
        "nothing given": {},
        "none": {"request": None},
        "vectors": {"request": vectors},
        "one row without": {"request": rows},
        "one vector": {"request": vectors[1]},
        "state": {"request": state},
    }
    if strength:
        requests["half"] = {"request": rows, "request_strength": 0.5}
        requests["strength by row"] = {"request": rows, "request_strength": [0.25, 1.0, -1.0]}
    if texts:
        requests["texts"] = {"request": [TEXTS[0], None, TEXTS[2]]}
        requests["one text"] = {"request": TEXTS[1]}
        requests["text and vector"] = {"request": [TEXTS[0], vectors[1], " "]}
    outputs = {}
    with torch.no_grad():
        for batch, x in inputs.items():
            names = requests if batch == "short" else ("one row without", "one vector", "state")
            for name, keywords in ((name, requests[name]) for name in names):
                outputs[f"output/{batch}/{name}"] = masks(x, **keywords)
        masks_for = masks.masks_for if hasattr(masks, "masks_for") else masks.gates  # the name at those commits
        for module, gate in masks_for(rows).items():
            if hasattr(gate, "weight_mask"):  # not the gates of features alone, such as a GRU's
                outputs[f"mask/{module}"] = gate.weight_mask()
        if texts:
            outputs["encoded"] = masks.encode(TEXTS)
    return outputs


def state_values(state: Any) -> dict[str, Tensor]:
    """Everything in a mask state that is a tensor."""
    parts = {f"state/{name}.{part}": value for name, parts in state.tensors.items() for part, value in parts.items()}
    return {**parts, "state/active": state.active, "state/strength": state.strength}


def arithmetic(weights: Mapping[str, Tensor], vectors: Tensor) -> dict[str, Tensor]:
    """What PyTorch alone makes of an adapter's weights, by operations such as gates are made with.

    Args:
        weights: Tensors of ``adapter_model.safetensors``.
        vectors: Request vectors.
    """
    own = {key.removeprefix(GENERATOR): value.clone() for key, value in weights.items()}
    hidden = functional.normalize(vectors, dim=-1) * vectors.shape[-1] ** 0.5
    if "trunk.0.weight" in own:
        hidden = functional.gelu(functional.linear(hidden, own["trunk.0.weight"], own["trunk.0.bias"]))
    made = functional.linear(hidden, own["head.weight"], own["head.bias"])
    few = made[:, None, :8]
    return {
        "arithmetic/head": made[:, :40],
        "arithmetic/sigmoid": torch.sigmoid(made[:, :40]),
        "arithmetic/product": torch.bmm(few.transpose(1, 2), few),
    }


# ---------------------------------------------------------------- recommenders

HISTORIES = ([3, 7, 11], [0, 1, 4, 8, 9, 12, 16, 20, 24, 28, 32], [5])
REQUESTS = (None, "more Horror, please", "No comedy", "Something with horror but without comedy")


def recommended(recommender: Any) -> list[dict[str, Any]]:
    """The lists that a recommender gives for every history and request."""
    lists = []
    for history in HISTORIES:
        for request in REQUESTS:
            for strength in (1.0, 3.0):
                answer = recommender.recommend(history, request, strength=strength, k=5)
                lists.append(
                    {
                        "history": history,
                        "request": request,
                        "strength": strength,
                        "items": answer.items,
                        "frozen_items": answer.frozen_items,
                        "shares": {name: list(pair) for name, pair in answer.shares.items()},
                    }
                )
    return lists


def recommender_scores(recommender: Any) -> dict[str, Tensor]:
    """Scores of all items for every history and request, and the vectors of the requests."""
    length = 8
    rows = [[item + 1 for item in history][-length:] for history in HISTORIES]
    item_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    texts = [text for text in REQUESTS if text is not None]
    masks = recommender.masks
    with torch.no_grad():
        scores = {f"output/{text}": masks(item_ids, request=text) for text in texts}
        scores["output/one row without"] = masks(item_ids, request=[texts[0], None, texts[2]])
        scores["frozen"] = masks(item_ids, request=None)
        scores["encoded"] = masks.encode(texts)
    return scores


def trained_on_histories(model: Any, histories: Callable[[], Tensor], steps: int = 60) -> Any:
    """A backbone trained for a few steps to say the next item."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        items = histories()
        loss = model(items[:, :-1], labels=items[:, 1:] - 1)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
