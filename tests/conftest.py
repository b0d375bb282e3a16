"""Small models and helpers that the tests share, as fixtures."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, hf_api
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks

GATES = ("low_rank", "scale", "signed", "topk")
settings.register_profile("no deadline", deadline=None)  # machines are shared: a time limit is no test
settings.load_profile("no deadline")
torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other
_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
_DEVICES = ["cpu", pytest.param("cuda", marks=_GPU, id="cuda")]
_HOOKS = [name for name in vars(nn.Linear(1, 1)) if "hooks" in name]


class TinyRecommender(nn.Module):
    """Scores 20 items from item ids (rows, length); ``predict`` bypasses the root's call."""

    def __init__(self, conv1d: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.up: nn.Module = Conv1D(16, 8) if conv1d else nn.Linear(8, 16)
        self.down: nn.Module = Conv1D(8, 16) if conv1d else nn.Linear(16, 8, bias=False)
        self.out = nn.Linear(8, 20)

    def _score(self, x: Tensor) -> Tensor:
        return self.out(self.down(torch.relu(self.up(self.embedding(x)))).mean(1))

    def forward(self, x: Tensor, fail: BaseException | None = None) -> Tensor:
        scores = self._score(x)
        if fail is not None:
            raise fail
        return scores

    def predict(self, x: Tensor) -> Tensor:
        return self._score(x)


class TinyScores(nn.Module):
    """Scores 20 items by products with its embedding: no module computes the scores, only methods do."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.layer = nn.Embedding(20, 8), nn.Linear(8, 8)

    def state(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.items(x))).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.state(x) @ self.items.weight.T

    def predict(self, x: Tensor) -> Tensor:
        return self.state(x) @ self.items.weight.T

    def score(self, x: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Score all items, or some, (n,) or (rows, n)."""
        items = self.items.weight if candidates is None else self.items.weight[candidates]
        state = self.state(x)
        return state @ items.T if items.dim() == 2 else (items @ state[..., None])[..., 0]


@dataclass
class Snapshot:
    """Everything about a model that unloading promises to give back."""

    modules: dict[str, nn.Module]
    attributes: dict[str, list[str]]
    children: dict[str, list[str]]
    hooks: dict[str, dict[str, list[Any]]]
    parameters: dict[str, nn.Parameter]
    requires_grad: dict[str, bool]
    training: dict[str, bool]
    storage: dict[str, int]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        modules = dict(model.named_modules(remove_duplicate=False))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = model.state_dict()
        held = {*parameters, *dict(model.named_buffers(remove_duplicate=False))}  # quantised layers make others anew
        return cls(
            modules=modules,
            attributes={name: sorted(vars(module)) for name, module in modules.items()},
            children={name: list(module._modules.keys()) for name, module in modules.items()},
            hooks={name: {t: list(getattr(module, t).items()) for t in _HOOKS} for name, module in modules.items()},
            parameters=parameters,
            requires_grad={name: p.requires_grad for name, p in parameters.items()},
            training={name: module.training for name, module in modules.items()},
            storage={name: _place(value) for name, value in state.items() if name in held},
            state={name: _kept(value) for name, value in state.items()},
        )

    def differences(self, model: nn.Module) -> list[str]:
        """What is not as it was; empty if everything is."""
        now = Snapshot.of(model)
        found = []
        for kind in ("attributes", "children", "hooks", "requires_grad", "training", "storage"):
            if getattr(self, kind) != getattr(now, kind):
                found.append(f"{kind}: {getattr(self, kind)} -> {getattr(now, kind)}")
        if list(self.state) != list(now.state):
            found.append(f"state_dict keys: {list(self.state)} -> {list(now.state)}")
        found += [
            f"value of {k}" for k in self.state.keys() & now.state.keys() if not _same(self.state[k], now.state[k])
        ]
        for kind in ("modules", "parameters"):
            before, after = getattr(self, kind), getattr(now, kind)
            if list(before) != list(after):
                found.append(f"{kind}: {list(before)} -> {list(after)}")
            found += [f"identity of {k}" for k in before.keys() & after.keys() if before[k] is not after[k]]
        return found


def _place(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) and not is_lazy(value) else 0


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) and not is_lazy(value) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if a is b or not isinstance(a, Tensor):
        return bool(a is b or a == b)
    if a.is_meta or b.is_meta:  # offloaded: the numbers are elsewhere
        return a.is_meta and b.is_meta and (a.dtype, a.shape) == (b.dtype, b.shape)
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers, 8 wide, that knows seven words; read only."""
    folder = tmp_path_factory.mktemp("encoder")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "more", "less", "horror", "drama", "please"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., TinyRecommender]:
    """Makes a tiny recommender in eval mode, with equal weights for equal arguments."""

    def make(seed: int = 0, conv1d: bool = False) -> TinyRecommender:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TinyRecommender(conv1d).eval()

    return make


@pytest.fixture
def model(make_model: Callable[..., TinyRecommender]) -> TinyRecommender:
    return make_model()


@pytest.fixture(scope="session")
def make_scores() -> Callable[[], TinyScores]:
    """Makes a model whose scores no module computes, in eval mode, with equal weights."""

    def make() -> TinyScores:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return TinyScores().eval()

    return make


@pytest.fixture(scope="session")
def make_features() -> Callable[..., Tensor]:
    """Makes descriptions of rows."""

    def make(rows: int = 20, width: int = 5, seed: int = 0) -> Tensor:
        return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def make_described(
    make_scores: Callable[[], TinyScores], make_features: Callable[..., Tensor]
) -> Callable[..., RequestMaskModel]:
    """Makes a masked model whose output has row values, with requests of 8 numbers; ``features=None``: not yet set."""

    def make(
        name: str = "", model: nn.Module | None = None, features: Tensor | str | None = "made", **options: Any
    ) -> RequestMaskModel:
        values: dict[str, Any] = {"target_outputs": [name], "row_features": [name], "request_dim": 8}
        config = RequestMaskConfig(**{**values, "init_weights": False, **options})
        with torch.random.fork_rng():
            torch.manual_seed(1)
            masks = inject_request_masks(make_scores() if model is None else model, config)
            if features is not None:
                masks.set_row_features(name, make_features() if isinstance(features, str) else features)
        return masks

    return make


@pytest.fixture
def vectors() -> Tensor:
    """Requests for a batch of three."""
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def x() -> Tensor:
    """A batch of three histories."""
    return torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15]])


@pytest.fixture(scope="session")
def make_config() -> Callable[..., RequestMaskConfig]:
    """Makes a configuration with the hashing encoder and random gates, unless told otherwise."""

    def make(gate: str = "low_rank", **options: Any) -> RequestMaskConfig:
        defaults: dict[str, Any] = {"target_modules": ["up", "down"], "init_weights": False}
        if "request_dim" not in options:
            defaults |= {"encoder": "hashing", "encoder_options": {"dim": 16}}
        return RequestMaskConfig(gate=gate, **{**defaults, **options})

    return make


@pytest.fixture(scope="session")
def snapshot() -> Callable[[nn.Module], Snapshot]:
    """Records a model; ``.differences(model)`` later lists what has changed."""
    return Snapshot.of


@pytest.fixture(params=GATES)
def gate(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=_DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=_DEVICES)
def other_device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def edit_json() -> Callable[..., None]:
    """Changes fields of a JSON file."""

    def edit(path: Path, **values: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A hub on this machine that huggingface_hub talks to, with an empty cache: see ``fake_hub.py``."""
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    hub = module.FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # behind the functions that PEFT calls
    # PEFT pushes by the API that transformers keeps from its first call in a process, with the address of that moment.
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))  # where "user/name" is no folder
    yield hub
    hub.close()
