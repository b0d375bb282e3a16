"""A graph break inside a compiled forward must not lose the request."""

import pytest
import torch
from torch import Tensor, nn

from cramer_peft import RequestMaskConfig, inject_request_masks


class Breaks(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.items = nn.Embedding(20, 4)
        self.rnn = nn.GRU(4, 6, batch_first=True)
        self.up = nn.Linear(4, 6)
        self.out = nn.Linear(6, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = self.items(x)
        if self.where == "gru":
            h, _ = self.rnn(h)
        else:
            h = self.up(h)
            torch._dynamo.graph_break()
        return self.out(h.sum(1))


@pytest.mark.parametrize("where", ["gru", "model"])
@pytest.mark.parametrize("how", ["keyword", "block"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_graph_break_does_not_lose_the_request(where: str, how: str, grad: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Breaks(where).eval().requires_grad_(False)
    x = torch.randint(20, (3, 5))
    targets = ["items", "rnn" if where == "gru" else "up", "out"]
    config = RequestMaskConfig(target_modules=targets, request_dim=4, init_weights=False)
    masks = inject_request_masks(model, config).eval()
    vectors = torch.randn(3, 4)
    with torch.set_grad_enabled(grad):
        frozen, expected = masks(x), masks(x, request=vectors)
        compiled = torch.compile(masks, backend="eager")
        for _ in range(2):
            if how == "keyword":
                found = compiled(x, request=vectors)
            else:
                with masks.request(vectors):
                    found = compiled(x)
            assert torch.allclose(found, expected, atol=1e-5)
            assert torch.allclose(compiled(x), frozen, atol=1e-6)
