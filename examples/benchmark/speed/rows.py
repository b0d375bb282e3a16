"""The rows of the speed benchmark: ours with a request given in several ways, ours compiled, and PEFT's adapters."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmark.speed.models import SpeedModel
from benchmark.speed.timing import Row
from cramer_peft import HashingEncoder, RequestMaskConfig, RequestMaskModel, WordLlamaEncoder, inject_request_masks
from cramer_peft.context import FixedMasks
from cramer_peft.encoders import RequestEncoder
from cramer_peft.errors import DataError, MissingExtraError
from cramer_peft.recsys.requests.item_features import TEXT_WIDTH

RANK = 8  # of LoRA
ROWS = "rows"
_FEATURES = 3 * TEXT_WIDTH  # of an item: attributes, title and embedding
_WORDS = ("funny", "sad", "old", "french", "horror", "romance", "short", "war", "space", "music", "crime", "quiet")


@dataclass(frozen=True)
class Form:
    """A form of mask to time: ``scale``, ``signed``, ``topk``, ``low_rank`` with a rank, or ``rows``.

    ``rows`` are the recommenders' default: row values made from features of the items, added to the scores.
    """

    gate: str
    rank: int | None = None

    @classmethod
    def parse(cls, text: str) -> Form:
        """Return the form of a text: ``"scale"``, ``"signed"``, ``"topk"``, ``"low_rank:RANK"`` or ``"rows"``.

        Raises:
            DataError: If it is none of them.
        """
        gate, _, rank = text.partition(":")
        if gate == "low_rank" and (rank or "4").isdigit() and int(rank or 4) > 0:
            return cls(gate, int(rank or 4))
        if gate not in ("scale", "signed", "topk", ROWS) or rank:
            raise DataError(
                f"gate: found {text!r}, expected 'scale', 'signed', 'topk', 'rows' or 'low_rank:RANK', such as "
                "'low_rank:4'."
            )
        return cls(gate)

    def encoder(self, encoder: RequestEncoder) -> RequestEncoder:
        """Return an encoder whose vectors suit the form: for ``rows``, two sides as wide as the recommenders'."""
        return _TwoSides(encoder) if self.gate == ROWS else encoder

    def __str__(self) -> str:
        return self.gate if self.rank is None else f"{self.gate} {self.rank}"


class _TwoSides:
    """What a request wants beside what it does not want: the first numbers of another encoder's vectors, twice."""

    def __init__(self, encoder: RequestEncoder) -> None:
        self._encoder, width = encoder, min(TEXT_WIDTH, encoder.dim)
        self.name, self.dim = f"{encoder.name}, two sides", 2 * width
        self.sides = {"wanted": width, "unwanted": width}

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self._encoder.encode(texts)[:, : self.dim // 2].repeat(1, 2)


@dataclass(frozen=True)
class Subject:
    """A row together with the modules whose weights it needs.

    Attributes:
        row: The row to time.
        modules: All modules that it needs, the frozen model included.
        peak_bytes: Peak memory if it is known already, because a call allocates nothing; None: to be measured.
    """

    row: Row
    modules: tuple[nn.Module, ...]
    peak_bytes: int | None = None


def with_shared_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model that holds the same parameter and buffer objects."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def default_encoder() -> RequestEncoder:
    """Return the static encoder, or the hashing one if its package is not installed."""
    try:
        return WordLlamaEncoder()
    except MissingExtraError:
        return HashingEncoder(256)


class Texts:
    """A source of requests that have never been given before."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def new(self, rows: int) -> list[str]:
        """Return ``rows`` different texts, all new."""
        texts = []
        for _ in range(rows):
            number = next(self._count)
            first, second = _WORDS[number % len(_WORDS)], _WORDS[number // len(_WORDS) % len(_WORDS)]
            texts.append(f"something {first} from year {number}, but nothing {second} please")
        return texts


def encoded(model: SpeedModel, encoder: RequestEncoder, texts: list[str]) -> Tensor:
    """Return vectors of texts, (texts, dim), on the model's device."""
    return encoder.encode(texts).to(model.device)


def frozen_rows(model: SpeedModel, batch: int) -> list[Subject]:
    """Return the frozen model twice: the second row shows the noise between two equal calls."""
    inputs = model.make_inputs(batch)

    def run(_: Any) -> object:
        return model.module(**inputs)

    return [Subject(Row(name, run), (model.module,)) for name in ("frozen", "frozen again")]


def transformer_encoder_rows(batch: int, length: int = 16, device: str | torch.device = "cpu") -> list[Subject]:
    """Return the forward of an encoder as large as MiniLM (L6, 384 wide; random weights).

    It shows the cost of a text of ``length`` tokens that is not cached yet, without tokenizer and recommender.
    """
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = BertModel(config, add_pooling_layer=False).eval().to(device)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(batch)).to(
        device
    )
    return [Subject(Row("encoder like MiniLM, alone", lambda _: encoder(ids)), (encoder,))]


def flatness_rows(
    model: SpeedModel, batch: int, form: Form, encoder: RequestEncoder, counts: tuple[int, ...]
) -> list[Subject]:
    """Return the same batch with several numbers of different requests, each compared to all rows the same.

    Numbers larger than the batch are left out.
    """
    encoder = form.encoder(encoder)
    masks, inputs = adapted(model, form, encoder), model.make_inputs(batch)
    vectors = encoded(model, encoder, Texts().new(batch))
    found = []
    for count in [1, *(count for count in sorted(set(counts) - {1}) if count <= batch)]:
        given = vectors[torch.arange(batch, device=vectors.device) % count]
        found.append((f"{form}: {count} different", _block(masks, given, inputs)))
    return [
        Subject(Row(name, lambda _: masks(**inputs), found[0][0], around=around), (masks,)) for name, around in found
    ]


def our_rows(model: SpeedModel, batch: int, form: Form, encoder: RequestEncoder) -> list[Subject]:
    """Return the ways to give a request to an adapter of one form."""
    encoder = form.encoder(encoder)
    masks = adapted(model, form, encoder)
    inputs, texts = model.make_inputs(batch), Texts()
    vectors, cached = encoded(model, encoder, texts.new(batch)), texts.new(batch)
    with torch.no_grad():
        state = masks.mask_state(vectors)
        masks(**inputs, request=cached)

    def call(**given: Any) -> Callable[[Any], object]:
        return lambda _: masks(**inputs, **given)

    rows = [
        Row("no request", call()),
        Row("one request", call(request=vectors[0])),
        Row("gates ready, all rows the same", call(), around=_block(masks, vectors[:1].expand(batch, -1), inputs)),
        Row("gates ready", call(), around=_block(masks, state, inputs)),
        Row("mask state ready", call(request=state)),
        Row("vectors ready", call(request=vectors)),
        Row("texts cached", call(request=cached)),
        Row("texts new", lambda new: masks(**inputs, request=new), prepare=lambda: texts.new(batch)),
    ]
    named = [Row(f"{form}: {row.name}", row.run, row.against, row.prepare, row.around) for row in rows]
    if form.gate != ROWS:  # a value that is added cannot be merged into weights without a bias
        named.append(_merged(model, form, encoder, inputs, vectors[0]))
    return [Subject(row, (masks,)) for row in named]


def adapted(model: SpeedModel, form: Form, encoder: RequestEncoder, own_weights: bool = False) -> RequestMaskModel:
    """Return request masks with a random generator on a copy of the model."""
    module = copy.deepcopy(model.module) if own_weights else with_shared_weights(model.module)
    if form.gate == ROWS:
        config = RequestMaskConfig(target_outputs=[""], row_features=[""], request_dim=encoder.dim, init_weights=False)
    else:
        config = RequestMaskConfig(
            target_modules=model.targets, gate=form.gate, rank=form.rank, request_dim=encoder.dim, init_weights=False
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same gates in all copies
        masks = inject_request_masks(module, config, encoder=encoder)
        if form.gate == ROWS:
            with torch.no_grad():
                items = model.module(**model.make_inputs(1)).shape[-1]
            masks.set_row_features("", torch.randn(items, _FEATURES, device=model.device))
    masks.eval()
    return masks


def _merged(model: SpeedModel, form: Form, encoder: RequestEncoder, inputs: dict[str, Any], vector: Tensor) -> Row:
    masks = adapted(model, form, encoder, own_weights=True)
    masks.merge_request(vector)
    return Row(f"{form}: merged", lambda _: masks(**inputs))


def made(masks: RequestMaskModel, request: Any) -> FixedMasks | None:
    """Return the masks of a request, made once; in a block of ``masks.request`` each call makes them anew."""
    lazy = masks.lazy_masks(request)
    return None if lazy is None else lazy.for_call()


def _block(masks: RequestMaskModel, request: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    @contextmanager
    def around() -> Iterator[None]:
        with masks.request_context.using(made(masks, request)):
            masks(**inputs)
            yield

    return around


def compiled_rows(model: SpeedModel, batch: int, form: Form, encoder: RequestEncoder) -> list[Subject]:
    """Return the frozen model and ours, compiled; ours is compared to the compiled frozen model."""
    inputs, encoder = model.make_inputs(batch), form.encoder(encoder)
    vectors = encoded(model, encoder, Texts().new(batch))
    plain, masks = with_shared_weights(model.module), adapted(model, form, encoder)
    base, ours = torch.compile(plain, fullgraph=True), torch.compile(masks, fullgraph=True)
    with torch.no_grad():
        state = masks.mask_state(vectors)
    reference = f"{form}: compiled frozen"
    return [
        Subject(Row(reference, lambda _: base(**inputs)), (plain,)),
        Subject(Row(f"{form}: compiled, no request", lambda _: ours(**inputs), reference), (masks,)),
        Subject(Row(f"{form}: compiled, mask state", lambda _: ours(**inputs, request=state), reference), (masks,)),
        Subject(Row(f"{form}: compiled, vectors", lambda _: ours(**inputs, request=vectors), reference), (masks,)),
    ]


def peft_rows(model: SpeedModel, batch: int, adapters: tuple[int, ...]) -> list[Subject]:
    """Return LoRA and IA³ with one adapter, and LoRA with several in one batch by ``adapter_names``.

    Numbers of adapters larger than the batch are left out, since not all of them could be used.
    """
    inputs = model.make_inputs(batch)
    lora = LoraConfig(r=RANK, target_modules=model.targets)
    ia3 = IA3Config(target_modules=model.targets, feedforward_modules=model.inward)
    found = []
    for name, config in ((f"LoRA r={RANK}", lora), ("IA3", ia3)):
        single = get_peft_model(with_shared_weights(model.module), config).eval()
        found.append(Subject(Row(f"PEFT {name}", _call(single, inputs)), (single,)))
    counts = [count for count in sorted(set(adapters)) if count <= batch]
    if not counts:
        return found
    several = get_peft_model(with_shared_weights(model.module), lora, adapter_name="a0").eval()
    made = 1
    for count in counts:
        # One model serves all counts: an adapter that no row names is not run.
        for number in range(made, count):
            several.add_adapter(f"a{number}", lora)
        made = count
        names = [f"a{row % count}" for row in range(batch)]
        found.append(Subject(Row(f"PEFT LoRA adapter_names, {count}", _call(several, inputs, names)), (several,)))
    several.eval()
    return found


def _call(model: PeftModel, inputs: dict[str, Any], names: list[str] | None = None) -> Callable[[Any], object]:
    given = {} if names is None else {"adapter_names": names}
    return lambda _: model(**inputs, **given)


def split(model: SpeedModel, batch: int, form: Form, encoder: RequestEncoder) -> list[Row]:
    """Return the parts before the model's call, by themselves: encoding texts, and generating gates."""
    encoder = form.encoder(encoder)
    masks, texts = adapted(model, form, encoder), Texts()
    vectors = encoded(model, encoder, texts.new(batch))
    return [
        Row("encoding", encoder.encode, "encoding", prepare=lambda: texts.new(batch)),
        Row("generating gates", lambda _: masks.masks_for(vectors), "generating gates"),
    ]
