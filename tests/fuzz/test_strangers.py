"""Files from strangers: whatever they hold, loading ends in a value or in one of our errors.

``CRAMER_FUZZ_EXAMPLES`` sets how many cases each test tries.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from cramer_peft import MaskState, inject_request_masks, load_request_masks
from cramer_peft.errors import CramerError, DataError
from cramer_peft.recsys.data.atomic import read_atomic
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.storage.files import read_safetensors

EXAMPLES = int(os.environ.get("CRAMER_FUZZ_EXAMPLES", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# --- what a load may do, as seen by Python's audit events

_SEEN: list[str] | None = None
_PYTHON = tuple({str(Path(path).resolve()) for path in (sys.prefix, sys.base_prefix, torch.__path__[0])})
_FORBIDDEN = ("socket.", "pickle.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "urllib.")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _SEEN is None:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        _SEEN.append("open " + os.path.abspath(os.fsdecode(arguments[0])))
    elif event.startswith(_FORBIDDEN):
        _SEEN.append(event)


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fail if anything inside opens a socket, a pickle, a process, or a file outside ``folder``."""
    global _SEEN
    _SEEN = []
    try:
        yield
        seen = _SEEN
    finally:
        _SEEN = None
    allowed = (str(folder), str(Path(__file__).parents[2] / "cramer_peft"), "/proc/", "/sys/", *_PYTHON)
    assert [event for event in seen if not event.startswith(tuple("open " + root for root in allowed))] == []


def only_our_errors(load: Callable[[], Any], kind: type[Exception] = CramerError) -> Any:
    """What ``load`` returns, or None where it raised an error of ours with a message of bounded length."""
    message = ""
    try:
        return load()
    except kind as error:
        message = str(error)
    assert 10 < len(message) < 10_000
    message.encode()  # it can be printed
    return None


# --- JSON

RAW = "@@raw:"  # a text that starts so is written into the JSON without its quotes
TOKENS = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1" * 5000, "9" * 25, "-0", "1E5", "01", "tru", "{", "]")
DEEP = [json.dumps(RAW)[1:-1] + n * a + n * b for n in (20, 40, 900, 5000) for a, b in (("[", "]"), ('{"a":', "}"))]
TEXTS = (
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows",
    "file:///etc/passwd",
    "https://example.com/model",
    "~/model",
    "owner/name",
    "os.system",
    "a\0b",
    "\ud800",
    "",
    " ",
    "(a+)+$",
    "(.*)*up",
    "((((((.*)*)*)*)*)*)*!",
    "(",
    "[",
    "a{99999999999}",
    "x" * 100_000,
    ".",
    ".*",
    "up|down",
    "out",
    "up",
    "default",
    "🦊",
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 70),
    st.integers(),
    st.sampled_from([2**31, 2**53, 2**62, -(2**63), 10**18]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(TEXTS),
    st.sampled_from([RAW + token for token in TOKENS]),
    st.sampled_from(DEEP),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(TEXTS)), inner)
    ),
    max_leaves=6,
)


def encode(document: Any) -> bytes:
    text = json.dumps(document)
    pieces = text.split(f'"{RAW}')
    return (pieces[0] + "".join(piece.replace('"', "", 1) for piece in pieces[1:])).encode()


def edited(valid: dict[str, Any], likely: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[bytes]:
    """A valid document with a few fields replaced, removed or added."""

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        document = dict(valid)
        for name in draw(st.lists(st.sampled_from(sorted({**valid, **likely})), min_size=1, max_size=3, unique=True)):
            how = draw(st.integers(0, 9))
            if how == 0:
                document.pop(name, None)
            elif how == 1:
                document[draw(st.text(max_size=6))] = draw(values)
            elif how <= 6 and name in likely:
                document[name] = draw(likely[name])
            else:
                document[name] = draw(values)
        return encode(document)

    return build()


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes cut, flipped, doubled, or in another encoding."""
    data = draw(whole)
    place = draw(st.integers(0, len(data)))
    noise = draw(st.binary(max_size=12))
    how = draw(st.integers(0, 9))
    if how == 0:
        return data[:place]
    if how == 1:
        return data[:place] + noise + data[place:]
    if how == 2:
        return data[:place] + noise + data[place + len(noise) :]
    if how == 3:
        return (
            draw(st.sampled_from([b"\xef\xbb\xbf", b"\0", b" ", b"\n", b"[" * 50, b"PK\x03\x04", b"\x80\x04"])) + data
        )
    if how == 4:
        return data + draw(st.sampled_from([b"\0", b" ", data, b"}", noise]))
    if how == 5:
        return data[:place] + data[place // 2 :]
    if how == 6:
        return data.decode("latin-1").encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-7"])))
    if how == 7:
        return noise
    return data


# --- safetensors


@st.composite
def tensor_files(draw: st.DrawFn, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A file of edited tensors, then of an edited header, then of damaged bytes."""
    tensors, metadata = dict(tensors), dict(metadata)
    for _ in range(draw(st.integers(0, 2))):
        _edit_tensors(draw, tensors)
    if draw(st.booleans()):
        name = draw(st.sampled_from([*metadata, "format", "x"]))
        metadata[name] = draw(st.one_of(st.text(max_size=9), values.map(lambda v: encode(v).decode())))
        if draw(st.booleans()):
            metadata.pop(draw(st.sampled_from(sorted(metadata))))
    data = save(tensors, metadata={key: value.encode(errors="replace").decode() for key, value in metadata.items()})
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length], data[8 + length :]
    if draw(st.booleans()):
        header = draw(_headers(json.loads(header)))
        length = len(header)
    if draw(st.integers(0, 9)) == 0:
        length = draw(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300)))
    return struct.pack("<Q", length) + header + body


def _edit_tensors(draw: st.DrawFn, tensors: dict[str, torch.Tensor]) -> None:
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors[name]
    how = draw(st.integers(0, 7))
    if how == 0:
        tensors[name] = value.to(
            draw(st.sampled_from([torch.int64, torch.bool, torch.uint8, torch.float16, torch.float64, torch.bfloat16]))
        )
    elif how == 1 and value.is_floating_point():
        tensors[name] = torch.full_like(value, draw(st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0])))
    elif how == 2:
        tensors[name] = torch.full(value.shape, 1e300, dtype=torch.float64)
    elif how == 3:
        tensors[name] = value.reshape(-1) if draw(st.booleans()) else value[None]
    elif how == 4:
        tensors[name] = value[..., :0] if value.dim() else torch.zeros(0)
    elif how == 5:
        tensors[draw(st.sampled_from(["../../x.y", "/etc/passwd.a", "", ".", "a\0b.c", "up.", ".a", name + "."]))] = (
            value.clone()
        )
    elif how == 6 and len(tensors) > 1:
        del tensors[name]
    elif value.dtype == torch.bool:
        tensors[name] = torch.full(value.shape, 7, dtype=torch.uint8).view(torch.bool)


def _headers(header: dict[str, Any]) -> st.SearchStrategy[bytes]:
    counts = st.one_of(st.integers(-2, 200), st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]))
    entry = st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "F64", "I64", "BOOL", "F4", "C64", "F8_E8M0", "f32"]), values),
            "shape": st.one_of(st.lists(counts, max_size=4), st.just([1] * 200), values),
            "data_offsets": st.one_of(st.lists(counts, min_size=2, max_size=2), values),
        }
    )

    @st.composite
    def build(draw: st.DrawFn) -> bytes:
        name = draw(st.sampled_from(sorted(header)))
        how = draw(st.integers(0, 4))
        new = dict(header)
        if how == 0:
            new[name] = draw(st.one_of(entry, values))
        elif how == 1 and isinstance(new[name], dict):
            new[name] = {**new[name], draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"])): draw(values)}
        elif how == 2:
            field = draw(st.sampled_from(["shape", "data_offsets"]))
            new[name] = {**new[name], field: draw(st.lists(counts, max_size=3))}
        elif how == 3:  # twice the same name
            text = json.dumps(new)
            return (text[:-1] + f", {json.dumps(name)}: {json.dumps(new[name])}" + "}").encode()
        else:
            return draw(damaged(st.just(json.dumps(new).encode())))
        return encode(new)

    return build()


# --- adapters

LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "target_modules": st.one_of(
        st.sampled_from(["(a+)+$", "(.*)*up", "up|down", ".*", "all-linear", ["up"], ["up", "down"], [""], ["out"]])
    ),
    "exclude_modules": st.sampled_from(["((.*)*)*!", "up", ["up"], [], [""], "", ["x"] * 2000]),
    "layers_to_transform": st.sampled_from([0, [0], [], [10**15], -1]),
    "layers_pattern": st.sampled_from(["(a+)+$", "layers", ["(a+)+"], [], "", [""]]),
    "modules_to_save": st.sampled_from([["out"], ["up"], [""], ["("], [".*"], [], ["embedding", "out"], ["a/../b"]]),
    "gate": st.sampled_from(["scale", "topk", "low_rank", "SCALE"]),
    "rank": st.sampled_from([1, 2, 10**6, 2**62, None]),
    "generator_width": st.sampled_from([None, 1, 3, 2**40, 2**62]),
    "request_dim": st.sampled_from([1, 16, 2**40, 2**62]),
    "batch_dim": st.sampled_from([0, 1, -2, -3, 7, 2**40]),
    "batch_folding": st.sampled_from([None, "rows_first", "rows_last", "up"]),
    "module_parts": st.sampled_from([None, [], ["q"], ["out"], [""], ["input", "output"]]),
    "default_request": st.one_of(
        st.sampled_from(["a", "", [0.0] * 16, [1e39] * 16, [0.5], []]), st.lists(st.floats(), min_size=16, max_size=16)
    ),
    "encoder": st.sampled_from(["hashing", "wordllama", "transformers", "precomputed", "os.system", None, "", "a.b:c"]),
    "encoder_options": st.sampled_from(
        [
            {},
            None,
            {"dim": 16},
            {"dim": 2**40},
            {"dim": -1},
            {"model_name_or_path": "owner/name", "local_files_only": False},
            {"model_name_or_path": "/etc"},
            {"model_name_or_path": "../x"},
            {"trust_remote_code": True},
            {"nested": {"local_files_only": 0}},
        ]
    ),
    "encoder_tuning": st.sampled_from(["none", "last", "all"]),
    "masked_modules": st.sampled_from(
        [{}, {"up": [16, 8]}, {"up": [8], "down": [8, 16]}, {"../up": [1, 1]}, {"": [1, 1]}, {"up.q": [16, 8]}]
    ),
    "target_outputs": st.sampled_from(
        [[""], ["predict"], {"": {"features": 20}}, {"": {"features": 2**62}}, ["_x"], {}, []]
    ),
    "row_features": st.sampled_from([["up"], [""], {"": 5}, {"up": 2**62}, {"out": None}, ["gone"], {}, []]),
    "row_fingerprints": st.sampled_from([{}, {"up": [1.0] * 19}, {"up": [1e300]}, {"": "x"}, []]),
    "request_sides": st.sampled_from([{"a": 8, "b": 8}, {"a": 16}, {"a": 2**62}, {}, ["a"]]),
    "strength": st.sampled_from([0, 0.5, -1, 1e39, 1e300, True]),
    "base_fingerprint": st.sampled_from([None, "sha256:0", ""]),
    "base_model_name_or_path": st.sampled_from(["/etc", "owner/name", "https://example.com"]),
    "auto_mapping": st.sampled_from([{"parent_library": "os", "base_model_class": "system"}, [], "os"]),
    "revision": st.sampled_from(["main", "../x", 3]),
    "task_type": st.sampled_from(["CAUSAL_LM", "X", ["CAUSAL_LM"], {}]),
    "peft_type": st.sampled_from(["REQUEST_MASK", "LORA", [], None]),
    "inference_mode": st.sampled_from([False, 1]),
}


@dataclass(repr=False)
class Valid:
    """What valid files hold, where they are, and what they are for."""

    path: Path
    model: nn.Module
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def adapter(make_model, make_config, tmp_path_factory) -> Valid:
    folder = tmp_path_factory.mktemp("adapter").resolve()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inject_request_masks(make_model(), make_config(generator_width=3)).save_pretrained(folder)
    tensors, metadata = read_safetensors(folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    return Valid(folder, make_model(), tensors, metadata, config)


def load_and_use(adapter: Valid, snapshot: Callable[..., Any], config: bytes, weights: bytes) -> None:
    """Load the two files; the model is as before if that fails, and serves a request if it does not."""
    folder, model = adapter.path, adapter.model
    (folder / CONFIG).write_bytes(config)
    (folder / WEIGHTS).write_bytes(weights)
    before = snapshot(model)
    with watched(folder):
        masks = only_our_errors(lambda: load_request_masks(model, folder))
        if masks is not None:
            x = torch.tensor([[1, 2, 3], [4, 5, 6]])
            only_our_errors(lambda: masks(x, request=["a", None]))
            only_our_errors(lambda: masks(x))
            masks.unload()
    assert before.differences(model) == []


def plain_weights(adapter: Valid, digest: bool) -> bytes:
    metadata = {name: value for name, value in adapter.metadata.items() if digest or name != "config_digest"}
    return save(adapter.tensors, metadata=metadata)


@fuzz
@given(data=st.data(), digest=st.booleans())
def test_configurations(adapter, snapshot, data, digest: bool) -> None:
    config = data.draw(edited(adapter.config, LIKELY))
    load_and_use(adapter, snapshot, config, plain_weights(adapter, digest))


@fuzz
@given(data=st.data())
def test_damaged_configurations(adapter, snapshot, data) -> None:
    config = data.draw(damaged(edited(adapter.config, LIKELY) | st.just(encode(adapter.config))))
    load_and_use(adapter, snapshot, config, plain_weights(adapter, False))


@fuzz
@given(data=st.data())
def test_weights(adapter, snapshot, data) -> None:
    files = tensor_files(adapter.tensors, adapter.metadata)
    weights = data.draw(files | damaged(files) | st.binary(max_size=200))
    load_and_use(adapter, snapshot, encode(adapter.config), weights)


# --- mask states


@pytest.fixture(scope="module")
def state(make_model, make_config, tmp_path_factory) -> Valid:
    path = tmp_path_factory.mktemp("state").resolve() / "state.safetensors"
    masks = inject_request_masks(make_model(), make_config())
    masks.mask_state(["more horror", None]).save(path)
    tensors, metadata = read_safetensors(path)
    return Valid(path, masks, tensors, metadata)


@fuzz
@given(data=st.data())
def test_mask_states(state, data) -> None:
    files = tensor_files(state.tensors, state.metadata)
    state.path.write_bytes(data.draw(files | damaged(files)))
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with watched(state.path.parent):
        loaded = only_our_errors(lambda: MaskState.load(state.path))
        if loaded is None:
            return
        assert len(loaded) > 0
        assert all(torch.isfinite(part).all() for parts in loaded.tensors.values() for part in parts.values())
        only_our_errors(lambda: state.model(x, request=loaded))


# --- catalogues and atomic files


@fuzz
@given(data=st.data())
def test_catalogues(tmp_path_factory, data) -> None:
    path = tmp_path_factory.getbasetemp().resolve() / "catalogue.json"
    valid = {
        "format": "cramer-peft-catalogue",
        "version": 1,
        "item_ids": ["1", "2"],
        "titles": ["One", "Two"],
        "attributes": ["Comedy", "Drama"],
        "item_attributes": [[0], [0, 1]],
    }
    rows = st.lists(st.lists(st.integers(-1, 3), max_size=3), max_size=3)
    likely = {
        "item_ids": st.lists(st.sampled_from(["1", "2", "\ud800", "../x"]), max_size=3),
        "titles": st.lists(st.text(max_size=4), max_size=3),
        "attributes": st.lists(st.sampled_from(["Comedy", "Drama", ""]), max_size=3),
        "item_attributes": rows,
        "version": st.sampled_from([1, True, 1.0, 2**62]),
    }
    documents = edited(valid, likely)
    path.write_bytes(data.draw(documents | damaged(documents)))
    with watched(path.parent):
        loaded = only_our_errors(lambda: Catalogue.load(path), DataError)
    if loaded is not None:
        assert loaded.item_attributes.shape == (len(loaded), len(loaded.attributes))


cells = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["1", "1e400", "nan", "-inf", "1_000", "0x10", "1" * 400, "1" * 5000, "True", "NA", "\0", "a b", ""]
    ),
)
headers = st.sampled_from(
    ["a:token", "b:float", "c:float_seq", "a:float", "d:str", "e", "f:int", ":float", "b:float\r"]
)


@st.composite
def atomic_files(draw: st.DrawFn) -> bytes:
    header = draw(st.lists(headers, min_size=1, max_size=4))
    width = st.just(len(header)) | st.integers(0, 5)
    rows = [draw(st.lists(cells, min_size=n, max_size=n)) for n in draw(st.lists(width, max_size=4))]
    text = "\n".join("\t".join(row) for row in [header, *rows])
    return text.encode("utf-8", "surrogatepass")


@fuzz
@given(data=atomic_files() | damaged(atomic_files()) | st.binary(max_size=60))
def test_atomic_files(tmp_path_factory, data: bytes) -> None:
    pytest.importorskip("pandas")
    path = tmp_path_factory.getbasetemp().resolve() / "data.inter"
    path.write_bytes(data)
    with watched(path.parent):
        found = only_our_errors(lambda: read_atomic(path), DataError)
    if found is not None:
        assert list(found.kinds) == list(found.names)
        assert all(len(found[name]) == len(found) for name in found.names)
        assert all(isinstance(cell, str) for name in found.names for cell in found[name])
