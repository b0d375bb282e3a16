import pytest
import torch
from torch import Tensor

from cramer_peft.recsys.evaluation import batches
from cramer_peft.recsys.evaluation.batches import by_rows, rows_together


def test_a_large_catalogue_has_fewer_rows_together() -> None:
    assert rows_together(1682, 256) == rows_together(100_000, 256) == 256
    assert rows_together(1_000_000, 256) == 33
    assert rows_together(10**9, 256) == rows_together(0, 1) == 1
    for items in (10_000, 300_000, 5_000_000):
        assert rows_together(items, 1024) * items <= batches.CELLS


@pytest.mark.parametrize("piece", [1, 12, 10_000])
def test_by_rows_is_what_the_whole_gives(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_PIECE", piece)
    sizes = []

    def measure(scores: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(scores))
        return scores.sum(1) + targets

    scores, targets = torch.arange(20.0).reshape(5, 4), torch.arange(5)
    assert torch.equal(by_rows(measure, 4, scores, targets), scores.sum(1) + targets)
    assert max(sizes) == min(5, max(1, piece // 4))
    assert by_rows(measure, 4, scores[:0], targets[:0]).shape == (0,)
