import pytest
import torch

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


def test_without_gradients_gates_are_made_once_per_block(model, make_config, builds, x) -> None:
    masks = inject_request_masks(model, make_config())
    with torch.no_grad(), masks.request(["a", "b", "c"]):
        first = model(x)
        assert torch.equal(model.predict(x), first)
        assert torch.equal(model(x), first)
    assert len(builds) == 1


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
