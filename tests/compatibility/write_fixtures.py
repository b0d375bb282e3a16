"""Writes the fixtures of this folder, with an old version of the package.

The fixtures of 05c2656 and 9aae9b6 (adapters, mask states) and of 04ba6e0 and 9aae9b6 (recommenders) are in the
repository; what they hold was written by the package as it was at that commit::

    git worktree add --detach ../old 05c2656
    PYTHONPATH=../old OMP_NUM_THREADS=1 python tests/compatibility/write_fixtures.py adapters
    git worktree add --detach ../older 04ba6e0
    PYTHONPATH=../older OMP_NUM_THREADS=1 python tests/compatibility/write_fixtures.py recommenders

Masks of the form ``low_rank`` have been computed in another order since 0ac16d6, which changes the last bits of a
model's outputs. What 9aae9b6 gives for the older files is therefore kept beside what they gave when they were written,
where the two differ; it was written last, with the package as it was at 9aae9b6::

    PYTHONPATH=../old OMP_NUM_THREADS=1 python tests/compatibility/write_fixtures.py later

The commit is read from the repository that the package is imported from, so that no fixture can name another. They are
never to be written anew for a version that is there already: a change of bits would no longer be seen.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fixture_runs import (
    MODELS,
    TEXTS,
    VECTOR_WIDTH,
    arithmetic,
    draw_inputs,
    masked_outputs,
    recommended,
    recommender_scores,
    state_values,
    trained_on_histories,
)
from safetensors.torch import load_file, save_file

import cramer_peft
from cramer_peft import MaskState, RequestMaskConfig, inject_request_masks, load_request_masks

HERE = Path(__file__).parent
LATER = "9aae9b6"


@dataclass(frozen=True)
class Case:
    """One adapter: its name, model and configuration."""

    name: str
    model: str
    config: dict[str, Any]
    merges: bool = False  # whether a request can be merged into its weights
    hashing: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hashing", self.config.get("encoder") == "hashing")


_HASHING = {"encoder": "hashing", "encoder_options": {"dim": VECTOR_WIDTH}}
_VECTORS = {"request_dim": VECTOR_WIDTH}
_UP_DOWN = {"target_modules": ["up", "down"]}

CASES: dict[str, list[Case]] = {
    "05c2656": [
        Case("low_rank", "Linear", {**_UP_DOWN, **_HASHING, "gate": "low_rank", "rank": 2, "generator_width": 6}),
        Case("low_rank_linear_generator", "Gpt2Linear", {"target_modules": ["up"], **_VECTORS, "gate": "low_rank"}),
        Case("scale", "Linear", {**_UP_DOWN, **_VECTORS, "gate": "scale", "strength": 0.75}),
        Case("scale_bias_ungated", "Linear", {**_UP_DOWN, **_HASHING, "gate": "scale", "gate_bias": False}),
        Case("topk", "Linear", {**_UP_DOWN, **_HASHING, "gate": "topk", "drop_ratio": 0.3, "generator_width": 6}),
        Case(
            "topk_paper",
            "Gpt2Linear",
            {"target_modules": ["up"], **_VECTORS, "gate": "topk", "normalize_requests": False},
        ),
        Case("modules_to_save", "Linear", {**_UP_DOWN, **_VECTORS, "gate": "low_rank", "modules_to_save": ["out"]}),
    ],
    "9aae9b6": [
        Case(
            "low_rank",
            "Linear",
            {**_UP_DOWN, **_HASHING, "gate": "low_rank", "rank": 2, "generator_width": 6},
            merges=True,
        ),
        Case("scale", "Linear", {**_UP_DOWN, **_VECTORS, "gate": "scale", "generator_width": 6}, merges=True),
        Case("signed", "Linear", {**_UP_DOWN, **_HASHING, "gate": "signed", "generator_width": 6}, merges=True),
        Case(
            "signed_bias_ungated",
            "Gpt2Linear",
            {"target_modules": ["up"], **_VECTORS, "gate_bias": False, "generator_width": None, "strength": 0.75},
            merges=True,
        ),
        Case(
            "topk",
            "Linear",
            {**_UP_DOWN, **_HASHING, "gate": "topk", "drop_ratio": 0.3, "generator_width": 6},
            merges=True,
        ),
        Case("default_request", "Linear", {**_UP_DOWN, **_VECTORS, "generator_width": 6, "default_request": "drawn"}),
        Case("default_text", "Linear", {**_UP_DOWN, **_HASHING, "generator_width": 6, "default_request": TEXTS[1]}),
        Case("modules_to_save", "Linear", {**_UP_DOWN, **_VECTORS, "generator_width": 6, "modules_to_save": ["out"]}),
        Case(
            "attention_signed",
            "Attention",
            {"target_modules": ["attention", "out"], **_VECTORS, "generator_width": 6},
        ),
        Case(
            "attention_low_rank",
            "Attention",
            {"target_modules": ["attention"], **_HASHING, "gate": "low_rank", "rank": 2, "generator_width": 6},
        ),
        Case(
            "attention_topk",
            "Attention",
            {"target_modules": ["attention"], **_VECTORS, "gate": "topk", "drop_ratio": 0.3, "generator_width": 6},
        ),
        Case(
            "attention_parts",
            "Attention",
            {"target_modules": ["attention"], **_VECTORS, "module_parts": ["v", "heads"], "generator_width": 6},
        ),
        Case("recurrent_signed", "Recurrent", {"target_modules": ["gru", "out"], **_VECTORS, "generator_width": 6}),
        Case(
            "recurrent_scale",
            "Recurrent",
            {"target_modules": ["gru"], **_HASHING, "gate": "scale", "generator_width": 6},
        ),
        Case(
            "convolution_signed",
            "Convolution",
            {"target_modules": ["embedding", "convolution", "out"], **_HASHING, "generator_width": 6},
            merges=True,
        ),
        Case(
            "convolution_low_rank",
            "Convolution",
            {"target_modules": ["embedding", "convolution"], **_VECTORS, "gate": "low_rank", "generator_width": 6},
        ),
    ],
}


def commit() -> str:
    """The commit that the package is imported from.

    Raises:
        SystemExit: If its files were changed since.
    """
    folder = Path(cramer_peft.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if git("status", "--porcelain", "--", "."):
        raise SystemExit(f"{folder} has changes that no commit holds.")
    return git("rev-parse", "--short=7", "HEAD")


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(values, indent=1) + "\n")


def write_adapter(case: Case, folder: Path) -> None:
    """Write one adapter, a mask state of it, its base model, and what they gave."""
    torch.manual_seed(0)
    model = MODELS[case.model]().eval()
    inputs, vectors = draw_inputs(case.model), torch.randn(3, VECTOR_WIDTH)
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "base.safetensors")
    with torch.no_grad():
        frozen = {f"frozen/{name}": model(x) for name, x in inputs.items()}
    settings = dict(case.config)
    if settings.get("default_request") == "drawn":
        settings["default_request"] = vectors[1].tolist()
    masks = inject_request_masks(model, RequestMaskConfig(**settings, init_weights=False)).eval()
    masks.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # of no use to a reader of the fixture
    texts = [TEXTS[0], None, TEXTS[2]]
    with torch.no_grad():
        strength = {} if case.config.get("gate") == "topk" else {"strength": [1.0, 1.0, 0.5]}
        state = masks.mask_state(texts if case.hashing else [vectors[0], None, vectors[2]], **strength)
    state.save(folder / "state.safetensors")
    values = {f"input/{name}": x for name, x in inputs.items()}
    values |= {"vectors": vectors, **frozen, **state_values(state)}
    values |= arithmetic(load_file(folder / "adapter" / "adapter_model.safetensors"), vectors)
    stored = MaskState.load(folder / "state.safetensors")
    values |= masked_outputs(masks, inputs, vectors, stored, case.hashing, bool(strength))
    if case.merges:
        masks.merge_request(vectors[1])
        merged = masks.merge_and_unload()
        values |= {f"merged/{key}": value for key, value in merged.state_dict().items()}
    save_file({key: value.clone().contiguous() for key, value in values.items()}, folder / "values.safetensors")
    write_json(
        folder / "case.json",
        {
            "model": case.model,
            "gate": state.gate,
            "encoder": state.encoder,
            "texts": list(state.texts),
            "adapter": state.adapter,
            "base_fingerprint": state.base_fingerprint,
            "strength": bool(strength),
            "merges": case.merges,
        },
    )


# ---------------------------------------------------------------- recommenders

ITEMS, USERS, LENGTH = 40, 24, 8


def write_data(folder: Path) -> list[list[int]]:
    """Write 40 made-up items, half of them comedies and the rest horror, and histories of users of one taste each.

    Returns:
        The histories, as item indices.
    """
    kinds = ("Comedy", "Horror")
    lines = ["item_id:token\ttitle:token_seq\tgenres:token_seq"]
    lines += [f"i{item}\t{kinds[item % 2]} tale {item}\t{kinds[item % 2]}" for item in range(ITEMS)]
    (folder / "tales.item").write_text("\n".join(lines) + "\n")
    draw = random.Random(0)
    lines, histories = ["user_id:token\titem_id:token\ttimestamp:float"], []
    for user in range(USERS):
        items = draw.sample([item for item in range(ITEMS) if item % 2 == user % 2], 8)
        items += draw.sample([item for item in range(ITEMS) if item % 2 != user % 2], 1)
        lines += [f"u{user}\ti{item}\t{time}" for time, item in enumerate(items)]
        histories.append(items)
    (folder / "tales.inter").write_text("\n".join(lines) + "\n")
    return histories


def tiny_sasrec(histories: list[list[int]]) -> Any:
    """A SASRec of width 16 and one layer, trained for a few steps."""
    from cramer_peft.recsys.backbones import SASRec

    torch.manual_seed(0)
    config = SASRec.configure(ITEMS, max_length=LENGTH, dropout=0.0, hidden_size=16)
    config.num_hidden_layers = 1
    items = torch.tensor(histories) + 1
    return trained_on_histories(SASRec(config), lambda: items)


def train_at_04ba6e0(model: Any, data: Path, output: Path) -> None:
    """What ``cramer-peft demo`` did then, with a narrow generator in place of a wide one, for the size of the file."""
    from cramer_peft.recsys.bundle import RequestRecommender, save_backbone
    from cramer_peft.recsys.interactions import load_interactions
    from cramer_peft.recsys.split import leave_one_out

    from cramer_peft.recsys.training import GeneratorOptions, train_generator

    catalogue, interactions = load_interactions(data)
    save_backbone(model, output)
    torch.manual_seed(0)
    masks = inject_request_masks(model, RequestMaskConfig(generator_width=8))
    options = GeneratorOptions(steps=60, batch_size=16)
    train_generator(masks, catalogue, leave_one_out(interactions), options, progress=False)
    RequestRecommender(masks, catalogue).save(output)


def train_at_9aae9b6(model: Any, data: Path, output: Path) -> None:
    """What ``cramer-peft train`` does, with a backbone that is there already and fewer steps."""
    from cramer_peft.recsys.bundle import save_backbone
    from cramer_peft.recsys.own_recommender import TrainOptions, train_recommender

    from cramer_peft.recsys.training import GeneratorOptions

    checkpoint = data.parent / "checkpoint"
    save_backbone(model, checkpoint)
    generator = GeneratorOptions(steps=60, batch_size=16)
    train_recommender(TrainOptions(str(data), output, checkpoint=checkpoint, generator=generator, progress=False))


RECOMMENDERS = {"04ba6e0": train_at_04ba6e0, "9aae9b6": train_at_9aae9b6}


def write_recommender(revision: str, folder: Path) -> None:
    """Write a recommender's folder and what it gave, as loaded from there."""
    from cramer_peft.recsys.bundle import RequestRecommender

    output = folder / "recommender"
    output.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "tales"
        data.mkdir()
        model = tiny_sasrec(write_data(data))
        RECOMMENDERS[revision](model, data, output)
    (output / "adapter" / "README.md").unlink(missing_ok=True)
    recommender = RequestRecommender.load(output)
    scores = recommender_scores(recommender)
    scores |= arithmetic(load_file(output / "adapter" / "adapter_model.safetensors"), scores["encoded"])
    save_file({key: value.clone().contiguous() for key, value in scores.items()}, folder / "values.safetensors")
    write_json(folder / "lists.json", recommended(recommender))


# ---------------------------------------------------------------- older files, read by a later version


def write_later(root: Path) -> None:
    """Write what this version gives for the older files, where it is not what they gave when they were written.

    Raises:
        SystemExit: If it differs by more than rounding.
    """
    from cramer_peft.recsys.bundle import RequestRecommender

    for folder in sorted(path.parent for path in root.glob("*/*/**/values.safetensors")):
        if LATER in folder.parts:
            continue
        values = {key: value.clone() for key, value in load_file(folder / "values.safetensors").items()}
        if (folder / "case.json").exists():
            case = json.loads((folder / "case.json").read_text())
            model = MODELS[case["model"]]().eval()
            model.load_state_dict(load_file(folder / "base.safetensors"))
            inputs = {key.removeprefix("input/"): x for key, x in values.items() if key.startswith("input/")}
            masks = load_request_masks(model, folder / "adapter")
            state = MaskState.load(folder / "state.safetensors")
            found = masked_outputs(masks, inputs, values["vectors"], state, bool(case["encoder"]), case["strength"])
        else:
            found = recommender_scores(RequestRecommender.load(folder / "recommender"))
        differing = {key: value for key, value in found.items() if not torch.equal(value, values[key])}
        for key, value in differing.items():
            if not key.startswith("output/") or not torch.allclose(value, values[key], rtol=1e-5, atol=1e-5):
                raise SystemExit(f"{folder}: {key} is not what it was.")
        if differing:
            differing = {key: value.clone().contiguous() for key, value in differing.items()}
            save_file(differing, folder / f"values_at_{LATER}.safetensors")


def main() -> None:
    """Write the fixtures of the commit that the package is imported from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["adapters", "recommenders", "later"])
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to; by default this one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    revision = commit()
    known: dict[str, Any] = {"adapters": CASES, "recommenders": RECOMMENDERS, "later": {LATER: None}}[given.kind]
    if revision not in known:
        raise SystemExit(f"The package is imported from {revision}; {given.kind} are written at {', '.join(known)}.")
    if given.kind == "later":
        write_later(given.output)
        return
    root = given.output / given.kind / revision
    shutil.rmtree(root, ignore_errors=True)
    if given.kind == "recommenders":
        root.mkdir(parents=True)
        write_recommender(revision, root)
        return
    for case in CASES[revision]:
        (root / case.name).mkdir(parents=True)
        write_adapter(case, root / case.name)


if __name__ == "__main__":
    main()
