"""Keywords of a call of the handle or the model."""

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks
from cramer_peft.errors import ConfigError, RequestError


class TakesAnything(nn.Module):
    """Passes over keywords that it does not know, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.layer(x)


class OwnNames(TakesAnything):
    def forward(self, x: Tensor, strength: float = 1.0, requests: int = 0, **kwargs: object) -> Tensor:
        return self.layer(x) * strength + requests


class OwnRequest(TakesAnything):
    def forward(self, x: Tensor, request: float = 1.0, **kwargs: float) -> Tensor:
        return self.layer(x) * request * kwargs.get("strength", 1.0)


CONFIG = {"target_modules": ["layer"], "request_dim": 4, "init_weights": False}
X, REQUEST = torch.randn(2, 4), torch.randn(4)


@pytest.mark.parametrize(("name", "keyword"), [("strength", "request_strength"), ("requests", "request")])
def test_the_names_of_the_block_are_refused_in_a_call(name: str, keyword: str) -> None:
    model = TakesAnything().eval()
    masks = inject_request_masks(model, RequestMaskConfig(**CONFIG))
    for call in (masks, model):
        with pytest.raises(RequestError, match=f"no '{name}': give {keyword}=") as caught:
            call(X, request=REQUEST, **{name: 0.5})
        assert caught.value.args
    masks.unload()
    assert torch.equal(model(X, **{name: 0.5}), model(X))


def test_a_model_keeps_keywords_of_its_own() -> None:
    masks = inject_request_masks(OwnNames().eval(), RequestMaskConfig(**CONFIG))
    plain = masks(X, request=REQUEST)
    assert torch.equal(masks(X, request=REQUEST, strength=2.0, requests=1), plain * 2 + 1)
    model = OwnRequest().eval()
    masks = inject_request_masks(model, RequestMaskConfig(**CONFIG))
    assert torch.equal(masks(X, request=2.0, strength=3.0), model.layer(X) * 6.0)
    masks.unload()
    assert torch.equal(masks(X, request=2.0), model.layer(X) * 2.0)


@pytest.mark.parametrize("kind", [TakesAnything, lambda: nn.Sequential(nn.Linear(4, 4))], ids=["kwargs", "plain"])
def test_a_request_after_unload_is_refused(kind) -> None:
    model = kind().eval()
    masks = inject_request_masks(model, RequestMaskConfig(**{**CONFIG, "target_modules": "all-linear"}))
    masks.unload()
    with pytest.raises(ConfigError, match="have been unloaded"):
        masks(X, request=REQUEST)
    with pytest.raises(ConfigError, match="have been unloaded"):
        masks(X, request=None)
    assert torch.equal(masks(X), model(X))
