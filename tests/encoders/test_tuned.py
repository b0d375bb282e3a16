import copy
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, T5Config, T5EncoderModel

from cramer_peft import HashingEncoder, PrecomputedEncoder
from cramer_peft.encoders import CachedEncoder, TunableEncoder, TunedEncoder, tunable_names
from cramer_peft.encoders.transformers import TransformersEncoder
from cramer_peft.encoders.tuned import tuned_shapes
from cramer_peft.errors import EncoderError, RequestError

TEXTS = ["more horror please", "drama", "less drama"]


@pytest.fixture
def encoder(encoder_folder: Path) -> TransformersEncoder:
    return TransformersEncoder(str(encoder_folder))


class WordEncoder:
    """An encoder of one's own: a table with a layer on it."""

    name, dim = "words", 3

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module = module or nn.Sequential(nn.Embedding(5, 3), nn.Dropout(0.5), nn.Linear(3, 3))

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self.encode_with(texts, self.module).detach()

    def encode_with(self, texts: Sequence[str], run: Callable[..., Any]) -> Tensor:
        return run(torch.tensor([len(text) % 5 for text in texts]))

    def tunable_names(self, regime: str) -> list[str]:
        return [name for name, _ in self.module.named_parameters() if regime == "all" or name.startswith("2.")]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)


def train(tuned: TunedEncoder, steps: int = 3) -> None:
    optimiser = torch.optim.AdamW(tuned.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        tuned(TEXTS).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("regime", ["last", "all"])
def test_at_the_start_it_is_the_frozen_encoder(encoder: TransformersEncoder, regime: str) -> None:
    tuned = TunedEncoder(encoder, regime)
    assert torch.equal(tuned(TEXTS), encoder.encode(TEXTS))
    assert torch.equal(tuned(TEXTS), CachedEncoder(encoder).encode(TEXTS))
    with torch.no_grad():
        assert torch.equal(tuned(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("regime", ["last", "all"])
def test_gradients_reach_exactly_the_tuned_parameters(encoder: TransformersEncoder, regime: str) -> None:
    tuned = TunedEncoder(encoder, regime)
    weights = torch.randn(3, 8)
    (tuned(TEXTS) * weights).sum().backward()
    assert [name for name, p in tuned.named_parameters() if p.grad is None] == []
    assert all(p.grad is None and not p.requires_grad for p in encoder.module.parameters())
    names = [name for name, _ in encoder.module.named_parameters() if not name.startswith("pooler.")]
    expected = names if regime == "all" else [name for name in names if name.startswith("encoder.layer.1.")]
    assert sorted(tuned.state_dict()) == sorted("parameters_." + name.replace(".", "__") for name in expected)

    reference = copy.deepcopy(encoder)
    reference.module.requires_grad_(True)
    (reference.encode_with(TEXTS, reference.module) * weights).sum().backward()
    for name in expected:
        gradient = tuned.parameters_[name.replace(".", "__")].grad
        assert torch.allclose(gradient, reference.module.get_parameter(name).grad, atol=1e-6), name


@pytest.mark.parametrize("regime", ["last", "all"])
def test_training_leaves_the_encoder_as_it_was(encoder: TransformersEncoder, regime: str) -> None:
    before, vectors = state_of(encoder.module), encoder.encode(TEXTS)
    modules = list(encoder.module.modules())
    parameters = list(encoder.module.parameters())
    tuned = TunedEncoder(encoder, regime).train()
    train(tuned)
    assert not torch.allclose(tuned(TEXTS), vectors)
    assert_same(state_of(encoder.module), before)
    assert torch.equal(encoder.encode(TEXTS), vectors)
    assert all(a is b for a, b in zip(parameters, encoder.module.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, encoder.module.modules(), strict=True))
    assert not any(p.requires_grad for p in encoder.module.parameters())


def test_there_is_no_dropout_in_training(encoder: TransformersEncoder) -> None:
    assert encoder.module.config.hidden_dropout_prob > 0
    tuned = TunedEncoder(encoder, "all").train()
    assert torch.equal(tuned(TEXTS), tuned(TEXTS))
    own = WordEncoder()
    own.module.train()
    assert torch.equal(TunedEncoder(own, "all").train()(TEXTS), own.encode_with(TEXTS, own.module.eval()))
    own.module.train()
    TunedEncoder(own, "last")(TEXTS)
    assert own.module[1].training  # the encoder's own flag is left alone


def test_the_state_goes_through_a_file(encoder: TransformersEncoder, tmp_path: Path) -> None:
    tuned = TunedEncoder(encoder, "last")
    train(tuned)
    save_file(tuned.state_dict(), tmp_path / "tuned.safetensors")
    state = load_file(tmp_path / "tuned.safetensors")
    assert all(key.count(".") == 1 and key.startswith("parameters_.") for key in state)
    for assign in (False, True):
        again = TunedEncoder(encoder, "last")
        assert again.load_state_dict(state, assign=assign).missing_keys == []
        assert torch.equal(again(TEXTS), tuned(TEXTS))
        assert not torch.equal(again(TEXTS), encoder.encode(TEXTS))


def test_the_shapes_of_the_state(encoder: TransformersEncoder) -> None:
    for regime in ("last", "all"):
        state = TunedEncoder(encoder, regime).state_dict()
        shapes = {key: value.shape for key, value in state.items()}
        assert tuned_shapes(encoder, regime) == tuned_shapes(CachedEncoder(encoder), regime) == shapes
    with pytest.raises(EncoderError, match="cannot be tuned"):
        tuned_shapes(HashingEncoder(4), "all")


def test_a_copy_is_independent_and_shares_the_encoder(encoder: TransformersEncoder) -> None:
    tuned = TunedEncoder(encoder, "last")
    other = copy.deepcopy(tuned)
    assert other.encoder is encoder
    train(tuned)
    assert torch.equal(other(TEXTS), encoder.encode(TEXTS))
    assert not torch.allclose(tuned(TEXTS), other(TEXTS))
    train(other, steps=1)
    assert [name for name, _ in other.named_modules()] == ["", "parameters_"]


def test_two_adapters_share_an_encoder(encoder: TransformersEncoder) -> None:
    first, second = TunedEncoder(encoder, "all"), TunedEncoder(encoder, "last")
    train(first)
    assert torch.equal(second(TEXTS), encoder.encode(TEXTS))
    kept = first(TEXTS)
    train(second)
    assert torch.equal(first(TEXTS), kept)
    assert not torch.allclose(second(TEXTS), kept)


def test_a_pickle_works(encoder: TransformersEncoder) -> None:
    tuned = TunedEncoder(encoder, "last")
    train(tuned)
    again = pickle.loads(pickle.dumps(tuned))
    assert again.encoder is not encoder
    assert torch.equal(again(TEXTS), tuned(TEXTS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_in_half_precision(encoder_folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    for file in encoder_folder.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    BertModel.from_pretrained(encoder_folder, dtype=dtype).save_pretrained(tmp_path)
    encoder = TransformersEncoder(str(tmp_path))
    tuned = TunedEncoder(encoder, "last")
    assert {p.dtype for p in tuned.parameters()} == {p.dtype for p in encoder.module.parameters()} == {dtype}
    for kept in (dtype, torch.float32):  # kept in full precision, it runs in the encoder's all the same
        tuned = tuned.to(kept)
        vectors = tuned(TEXTS)
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors, encoder.encode(TEXTS))
        vectors.square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == kept for p in tuned.parameters())
        tuned.zero_grad()


def test_half_precision_copies_of_a_full_precision_encoder(encoder: TransformersEncoder) -> None:
    tuned = TunedEncoder(encoder, "all").to(torch.bfloat16)
    assert torch.allclose(tuned(TEXTS), encoder.encode(TEXTS), atol=0.05)
    tuned(TEXTS).square().sum().backward()
    assert {p.grad.dtype for p in tuned.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder.module.parameters()} == {torch.float32}


def test_no_texts_and_repeated_texts(encoder: TransformersEncoder) -> None:
    tuned = TunedEncoder(encoder, "last")
    assert tuned([]).shape == (0, 8)
    vectors = tuned(["drama", "more horror", "drama"])
    assert torch.equal(vectors, tuned(["drama", "more horror"])[[0, 1, 0]])
    assert vectors.requires_grad


def test_it_serves_training_after_inference_mode(encoder: TransformersEncoder) -> None:
    with torch.inference_mode():
        tuned = TunedEncoder(encoder, "last")
        tuned(TEXTS)
    train(tuned, steps=1)


def test_what_is_not_finite_names_the_text() -> None:
    tuned = TunedEncoder(WordEncoder(), "all")
    with torch.no_grad():
        tuned.parameters_["0__weight"][len("drama") % 5] = float("nan")
    with pytest.raises(EncoderError, match="'words' returned NaN or infinity for the text 'drama'"):
        tuned(["horror", "drama"])


@pytest.mark.usefixtures("restless_threads")
@pytest.mark.parametrize("callers", [["tuned", "tuned"], ["tuned", "frozen", "tuned", "frozen"]])
def test_threads_share_the_encoder(encoder: TransformersEncoder, callers: list[str]) -> None:
    tuned = TunedEncoder(encoder, "last")
    train(tuned)
    calls = {"tuned": tuned, "frozen": encoder.encode}
    expected = {who: call(TEXTS).detach() for who, call in calls.items()}

    def work(who: str) -> bool:
        return all(torch.equal(calls[who](TEXTS), expected[who]) for _ in range(40))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, callers))
    assert torch.equal(encoder.encode(TEXTS), expected["frozen"])


class Meeting(nn.Module):
    """Calls ``meet`` before it looks at its weight."""

    def __init__(self, meet: Callable[[], None]) -> None:
        super().__init__()
        self.weight, self.meet = nn.Parameter(torch.ones(3)), meet

    def forward(self, x: Tensor) -> Tensor:
        self.meet()
        return x[:, None] * self.weight


def test_a_call_does_not_end_inside_another() -> None:
    second, first_is_done = threading.Event(), threading.Event()
    entered: list[int] = []

    def meet() -> None:
        entered.append(threading.get_ident())
        if len(entered) == 1:
            second.wait(0.5)  # in vain, if calls run one after the other
        else:
            second.set()
            first_is_done.wait(5)

    tuned = TunedEncoder(Names(["weight"], Meeting(meet)), "all")
    with torch.no_grad():
        tuned.parameters_["weight"].fill_(2)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lambda: tuned(["abc"]).tolist()) for _ in range(2)]
        wait(futures, return_when=FIRST_COMPLETED)
        first_is_done.set()
        assert [future.result() for future in futures] == [[[6, 6, 6]], [[6, 6, 6]]]
    assert len(set(entered)) == 2


def test_tied_parameters_are_tuned_once() -> None:
    linear = nn.Linear(3, 3)
    own = WordEncoder(nn.Sequential(nn.Embedding(5, 3), linear, linear))
    tuned = TunedEncoder(own, "all")
    train(tuned)
    assert set(tuned.parameters_) == {"0__weight", "1__weight", "1__bias"}
    weight, bias = tuned.parameters_["1__weight"], tuned.parameters_["1__bias"]
    x = tuned.parameters_["0__weight"][[3, 0, 0]]
    expected = nn.functional.linear(nn.functional.linear(x, weight, bias), weight, bias)
    assert torch.allclose(tuned(TEXTS), expected, atol=1e-6)


def test_a_module_that_nobody_froze_gets_no_gradients() -> None:
    own = WordEncoder()
    assert isinstance(own, TunableEncoder)
    tuned = TunedEncoder(own, "last")
    tuned(TEXTS).sum().backward()
    assert set(tuned.parameters_) == {"2__weight", "2__bias"}
    assert all(p.grad is None for p in own.module.parameters())


def test_the_last_layer_of_several_architectures() -> None:
    sizes = {"vocab_size": 7, "hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    bert = BertModel(BertConfig(**sizes, num_hidden_layers=1))
    last = tunable_names(bert, "last")
    assert last == [name for name, _ in bert.named_parameters() if name.startswith("encoder.layer.0.")]
    assert len(last) == 16
    assert not any(name.startswith("pooler") for name in tunable_names(bert, "all"))
    distil = DistilBertModel(DistilBertConfig(vocab_size=7, dim=8, hidden_dim=16, n_layers=3, n_heads=2))
    last = tunable_names(distil, "last")
    assert last == [name for name, _ in distil.named_parameters() if name.startswith("transformer.layer.2.")]
    assert len(last) == 16
    # A list of two sublayers inside each block, as many as blocks, and a norm after the blocks.
    t5 = T5EncoderModel(T5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2))
    names = tunable_names(t5, "last")
    prefixes = ("encoder.block.1.", "encoder.final_layer_norm.")
    assert names == [name for name, _ in t5.named_parameters() if name.startswith(prefixes)]
    assert len(names) == 9


def test_a_last_layer_that_cannot_be_found_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"'last': Sequential has no nn.ModuleList.*encoder_tuning='all'"):
        tunable_names(nn.Sequential(nn.Linear(2, 2)), "last")


@pytest.mark.parametrize("regime", ["last", "all"])
@pytest.mark.parametrize("encoder", [HashingEncoder(4), PrecomputedEncoder({"a": torch.zeros(2)})])
def test_encoders_that_cannot_be_tuned_are_refused(encoder: Any, regime: str) -> None:
    with pytest.raises(EncoderError, match=f"encoder_tuning='{regime}'.*'{encoder.name}' cannot be tuned.*'none'"):
        TunedEncoder(encoder, regime)


@pytest.mark.parametrize("regime", ["none", "first", ""])
def test_unknown_regimes_are_refused(encoder: TransformersEncoder, regime: str) -> None:
    with pytest.raises(EncoderError, match="'last' or 'all'"):
        TunedEncoder(encoder, regime)


class Names(WordEncoder):
    def __init__(self, names: list[str], module: nn.Module | None = None) -> None:
        super().__init__(module)
        self.names = names

    def tunable_names(self, regime: str) -> list[str]:
        return self.names


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EncoderError, match="no parameter to tune"):
        TunedEncoder(Names([]), "all")
    with pytest.raises(EncoderError, match=r"no parameter '9\.weight'"):
        TunedEncoder(Names(["9.weight"]), "all")
    module = nn.Module()
    module.a = nn.Linear(2, 2)
    module.register_parameter("a__weight", nn.Parameter(torch.zeros(2)))
    module.register_parameter("values", nn.Parameter(torch.zeros(2)))
    module.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    with pytest.raises(EncoderError, match=r"'a\.weight' cannot be stored under 'a__weight', which 'a__weight' has"):
        TunedEncoder(Names(["a__weight", "a.weight"], module), "all")
    with pytest.raises(EncoderError, match="'values' cannot be stored under 'values', a reserved name"):
        TunedEncoder(Names(["values"], module), "all")
    with pytest.raises(EncoderError, match=r"'codes' is torch\.int8, which cannot be trained"):
        TunedEncoder(Names(["codes"], module), "all")


def test_its_text_form_names_encoder_and_regime(encoder: TransformersEncoder) -> None:
    assert "'transformers', regime='last'" in repr(TunedEncoder(encoder, "last"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_runs_where_its_parameters_are(encoder: TransformersEncoder) -> None:
    tuned = TunedEncoder(encoder, "last").to("cuda")
    vectors = tuned(TEXTS)
    assert vectors.device.type == "cuda"
    assert torch.allclose(vectors.cpu(), encoder.encode(TEXTS), atol=1e-5)
    vectors.sum().backward()
    assert all(p.grad is not None for p in tuned.parameters())
    assert {p.device.type for p in encoder.module.parameters()} == {"cpu"}


def test_a_text_that_is_no_unicode(encoder: TransformersEncoder) -> None:
    with pytest.raises(RequestError, match="can be written as UTF-8"):
        TunedEncoder(encoder, "last")(["fine", "half \udcff"])
