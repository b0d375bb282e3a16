import pytest
import torch
from torch import Tensor

from cramer_peft.recsys.requests.item_features import TEXT_WIDTH, item_features, whitened

ITEMS, WIDTH = 400, 12
FLOORS = (0.01, 0.05, 0.05)  # of attributes, title and embedding


def skewed(rows: int, width: int, seed: int = 0) -> Tensor:
    """Rows whose numbers hang together and vary by very different amounts."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(0, -1, width)[:, None]
    return torch.randn(rows, width, generator=generator) @ mix + 3


@pytest.fixture(scope="module")
def parts() -> tuple[Tensor, Tensor, Tensor]:
    return skewed(ITEMS, WIDTH, 1), skewed(ITEMS, TEXT_WIDTH, 2), skewed(ITEMS, TEXT_WIDTH, 3)


def variances(rows: Tensor) -> Tensor:
    centred = rows.double() - rows.double().mean(0)
    return torch.linalg.eigvalsh(centred.T @ centred / len(rows))


def test_all_directions_vary_alike() -> None:
    rows = skewed(ITEMS, WIDTH)
    found = whitened(rows, 1e-9)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean(0), torch.zeros(WIDTH), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.T @ found / ITEMS, torch.eye(WIDTH), atol=1e-4, rtol=0)
    assert float(variances(rows).max() / variances(rows).min()) > 50  # before


def test_the_floor_keeps_directions_without_meaning_small() -> None:
    rows = skewed(ITEMS, WIDTH)
    before, after = variances(rows), variances(whitened(rows, 0.05))
    torch.testing.assert_close(after, before / (before + 0.05 * before.max()), rtol=1e-4, atol=1e-5)


def test_directions_stay_as_they_are() -> None:
    """ZCA: of all whitenings, the one whose rows stay nearest to what they were."""
    rows = skewed(ITEMS, WIDTH)
    centred = (rows - rows.mean(0)).double()
    cross = centred.T @ whitened(rows, 0.01).double()
    torch.testing.assert_close(cross, cross.T, rtol=1e-4, atol=1e-3)
    assert float(torch.linalg.eigvalsh((cross + cross.T) / 2).min()) > 0


def test_the_parts_stand_side_by_side_with_a_mean_length_of_one(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    found = item_features(*parts)
    assert found.shape == (ITEMS, WIDTH + 2 * TEXT_WIDTH)
    named = (*parts[1:], parts[0])
    for part, rows, floor in zip(found.split([TEXT_WIDTH, TEXT_WIDTH, WIDTH], 1), named, FLOORS, strict=True):
        assert float(part.norm(dim=1).mean()) == pytest.approx(1, abs=1e-5)
        even = whitened(rows, floor)
        torch.testing.assert_close(part, even / even.norm(dim=1).mean())
    torch.testing.assert_close(item_features(None, *parts[1:]), found[:, : 2 * TEXT_WIDTH])


def test_the_order_of_items_does_not_matter(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    order = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(0))
    found = item_features(*(part[order] for part in parts))
    torch.testing.assert_close(found, item_features(*parts)[order], atol=1e-5, rtol=1e-4)


def test_neither_scale_nor_place_matters(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    found = item_features(*(part * 7 - 5 for part in parts))
    torch.testing.assert_close(found, item_features(*parts), atol=1e-4, rtol=1e-3)


def test_the_product_with_the_mean_of_some_items_tells_them_from_the_others() -> None:
    """A small difference of the means beside large noise: raw products do not see it, a linear discriminant does."""
    generator = torch.Generator().manual_seed(0)
    flags = torch.rand(ITEMS, generator=generator) < 0.3
    noise = torch.randn(ITEMS, WIDTH, generator=generator) * torch.linspace(12, 0.3, WIDTH)
    noise[flags, -1] += 1.5
    areas = {}
    for name, rows in (("raw", noise - noise.mean(0)), ("whitened", whitened(noise, 0.005))):
        products = rows @ rows[flags].mean(0)
        pairs = products[flags][:, None] - products[~flags]
        areas[name] = float((pairs > 0).float().mean())
    assert areas["whitened"] > 0.95
    assert areas["raw"] < 0.85


@pytest.mark.parametrize(
    "rows", [torch.ones(1, 5), torch.full((9, 5), 3.0), torch.zeros(9, 5), torch.randn(2, 5), torch.randn(3, 40)]
)
def test_few_or_equal_rows(rows: Tensor) -> None:
    found = item_features(rows, rows, rows)
    assert found.shape == (len(rows), 3 * rows.shape[1])
    assert bool(torch.isfinite(found).all())
    if len(rows.unique(dim=0)) == 1:
        assert not bool(found.any())


def test_later_items_change_nothing_in_the_described_ones(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    known = 300
    found = item_features(*parts, described=known)
    assert torch.equal(found[:known], item_features(*(part[:known] for part in parts)))
    other = item_features(*(torch.cat([part[:known], part[:7] * 50]) for part in parts), described=known)
    assert torch.equal(other[:known], found[:known])
    again = item_features(*(torch.cat([part[:known], part[:7]]) for part in parts), described=known)
    torch.testing.assert_close(again[known:], found[:7], atol=1e-5, rtol=1e-4)  # the same item has the same features
