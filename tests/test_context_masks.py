import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from cramer_peft import inject_request_masks
from cramer_peft.masks import MaskForm


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever gates are built."""
    from cramer_peft.masks import LowRankForm

    made, real = [], LowRankForm.build

    def build(self: MaskForm, *args):
        made.append(1)
        return real(self, *args)

    monkeypatch.setattr(LowRankForm, "build", build)
    return made


def test_gates_are_made_once_per_forward(model, make_config, builds, x) -> None:
    masks = inject_request_masks(model, make_config())
    with torch.no_grad(), masks.request(["a", "b", "c"]):
        first = model(x)
        assert torch.equal(model.predict(x), first)
        assert torch.equal(model(x), first)
    assert len(builds) == 3


def test_kept_gates_end_when_the_generator_changes(model, make_config, builds, x) -> None:
    masks = inject_request_masks(model, make_config())
    with torch.no_grad(), masks.request(["a", "b", "c"]):
        first = model(x)
        masks.generator.head.bias.add_(0.5)
        assert not torch.equal(model(x), first)
        masks.generator.head.bias.sub_(0.5)
        assert torch.allclose(model(x), first, atol=1e-5)
        masks.generator.load_state_dict({k: v * 2 for k, v in masks.generator.state_dict().items()})
        assert not torch.allclose(model(x), first, atol=1e-3)


def test_with_gradients_gates_are_made_anew_for_each_forward(model, make_config, builds, x) -> None:
    masks = inject_request_masks(model, make_config())
    with masks.request(["a", "b", "c"]):
        model(x)
        assert len(builds) == 1
        model(x)
        assert len(builds) == 2
        model.predict(x)
        assert len(builds) == 3


def test_nothing_is_made_before_a_layer_needs_it(model, make_config, builds, x) -> None:
    masks = inject_request_masks(model, make_config())
    with masks.request(["a", "b", "c"]):
        pass
    with masks.request(None):
        model(x)
    with masks.disable_adapter(), masks.request("a"):
        model(x)
    assert builds == []


@pytest.mark.parametrize("entry", ["forward", "predict"])
def test_two_backward_passes_in_one_block(model, make_config, gate: str, x, entry: str) -> None:
    masks = inject_request_masks(model, make_config(gate))
    run = getattr(model, entry)

    def gradients() -> list[torch.Tensor]:
        found = [p.grad.clone() for p in masks.generator.parameters()]
        masks.zero_grad()
        return found

    with masks.request(["a", None, "c"]):
        run(x).square().sum().backward()
        once = gradients()
        assert any(g.abs().sum() > 0 for g in once)
        for _ in range(3):
            run(x).square().sum().backward()
            assert all(torch.equal(a, b) for a, b in zip(gradients(), once, strict=True))
        run(x)  # a forward without a backward, between two
        run(x).square().sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(gradients(), once, strict=True))
        first, second = run(x).square().sum(), run(x).square().sum()
        first.backward()
        second.backward()
        assert all(torch.allclose(a, 2 * b, rtol=1e-4, atol=1e-6) for a, b in zip(gradients(), once, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_partial_entry_point_between_two_backward_passes(model, make_config, x) -> None:
    """Each method runs only some of the layers, so no layer is asked twice before the backward."""
    masks = inject_request_masks(model, make_config())
    with masks.request(["a", "b", "c"]):
        model.up(model.embedding(x)).sum().backward()
        model.down(torch.randn(3, 5, 16)).sum().backward()
        model.up(model.embedding(x)).sum().backward()
    assert masks.generator.head.weight.grad.abs().sum() > 0


def test_gradients_on_and_off_in_one_block(model, make_config, gate: str, x) -> None:
    masks = inject_request_masks(model, make_config(gate))
    with masks.request(["a", None, "c"]):
        with torch.no_grad():
            quiet = model(x)
        loud = model(x)
        with torch.inference_mode():
            silent = model(x)
        loud.sum().backward()
        model(x).sum().backward()
    assert torch.equal(quiet, loud.detach())
    assert torch.equal(quiet, silent)


@pytest.mark.parametrize("gradients", [True, False])
def test_topk_noise_only_in_training_mode(model, make_config, x, gradients: bool) -> None:
    masks = inject_request_masks(model, make_config("topk", drop_ratio=0.5))

    def outputs() -> list[torch.Tensor]:
        return [masks(x, request=["a", None, "c"]) for _ in range(4)]

    with torch.set_grad_enabled(gradients):
        masks.eval()
        calm = outputs()
        masks.train()
        noisy = outputs()
        model.eval()  # the model that people know, rather than the handle
        again = outputs()
    assert all(torch.equal(calm[0], other) for other in calm + again)
    assert any(not torch.equal(noisy[0], other) for other in noisy)
    assert all(torch.equal(noisy[0][1], other[1]) for other in noisy + calm)


def averaged(own: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):
        mine.data.copy_(theirs.data)


def exchanged(own: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):
        mine.data = theirs.data.clone()


def from_a_vector(own: nn.Module, other: nn.Module) -> None:
    vector_to_parameters(parameters_to_vector(other.parameters()), own.parameters())


def assigned(own: nn.Module, other: nn.Module) -> None:
    own.load_state_dict({key: value.clone() for key, value in other.state_dict().items()}, assign=True)


def set_by_hand(own: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(own.modules(), other.modules(), strict=True):
        for name, value in theirs.named_parameters(recurse=False):
            setattr(mine, name, nn.Parameter(value.detach().clone()))


def through_numpy(own: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):
        mine.detach().numpy()[...] = theirs.detach().numpy()


@pytest.mark.parametrize(
    "change", [averaged, exchanged, from_a_vector, assigned, set_by_hand, through_numpy], ids=lambda way: way.__name__
)
@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda mode: mode.__name__
)
@pytest.mark.parametrize("entry", ["root", "method"])
def test_weights_that_change_inside_a_block_are_seen(make_model, make_config, x, change, mode, entry: str) -> None:
    vectors = torch.randn(3, 5)
    config = make_config(request_dim=5)
    masks, other = (inject_request_masks(make_model(), config).eval() for _ in range(2))
    run = masks.model if entry == "root" else masks.model.predict
    expected = other(x, request=vectors)
    with mode(), masks.request(vectors):
        before = run(x)
        change(masks.generator, other.generator)
        after = run(x)
    assert not torch.allclose(before, expected, atol=1e-3)
    assert torch.equal(after, expected)


def test_a_functional_call_inside_a_block_uses_its_parameters(make_model, make_config, x) -> None:
    vectors = torch.randn(3, 5)
    masks, other = (inject_request_masks(make_model(), make_config(request_dim=5)).eval() for _ in range(2))
    with torch.no_grad(), masks.request(vectors):
        before = masks(x)
        found = functional_call(masks, dict(other.named_parameters()), (x,))
        assert torch.equal(masks(x), before)
    assert torch.equal(found, other(x, request=vectors))


def test_a_default_request_follows_a_change_without_gradients(make_model, make_config, x) -> None:
    masks, other = (inject_request_masks(make_model(), make_config()).eval() for _ in range(2))
    for each in (masks, other):
        each.set_default_request("more horror")
    with torch.no_grad():
        before = masks(x)
        averaged(masks.generator, other.generator)
        assert torch.equal(masks(x), other(x))
        assert not torch.allclose(masks(x), before, atol=1e-3)
