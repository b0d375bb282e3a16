"""Row values: added to an output, a product of a row's key and a request's query."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cramer_peft.errors import MergeError, RequestError, UnsupportedError
from cramer_peft.masks import KEY_WIDTH, RowKeys, RowValueMask, row_value_mask
from cramer_peft.masks.row_values import SCALE

ROWS, ITEMS, WIDTH = 3, 11, 6
seeds = st.integers(0, 2**16)


def made(seed: int = 0, sides: int = 0, items: int = ITEMS) -> RowKeys:
    torch.manual_seed(seed)
    keys = RowKeys(WIDTH, 4, {"wanted": sides, "unwanted": sides} if sides else {})
    keys.features = torch.randn(items, WIDTH)
    torch.nn.init.normal_(keys.gains)
    return keys.requires_grad_(False)


def mask(keys: RowKeys, rows: int = ROWS, active: Tensor | None = None, strength: Tensor | None = None) -> RowValueMask:
    return row_value_mask(torch.randn(rows, keys.query_width), keys, strength, active)


@given(seed=seeds, sides=st.sampled_from([0, 1, 4]))
def test_values_are_the_products_that_the_module_says(seed: int, sides: int) -> None:
    keys = made(seed, sides)
    u, e = torch.randn(ROWS, KEY_WIDTH), torch.randn(ROWS, 2 * sides)
    assert keys.features is not None
    expected = u @ keys.network(keys.features).T
    for gain, side in zip(keys.gains, e.split(max(sides, 1), -1), strict=False):
        expected = expected + gain * side @ keys.features[:, :sides].T
    values = RowValueMask(keys.query(u, e), None, keys).add(torch.zeros(ROWS, ITEMS), 0)
    assert torch.allclose(values, SCALE * expected, atol=1e-3, rtol=1e-3)


@given(seed=seeds, active=st.lists(st.booleans(), min_size=ROWS, max_size=ROWS))
def test_rows_without_a_request_are_copied_whatever_the_keys_hold(seed: int, active: list[bool]) -> None:
    keys, output = made(seed), torch.randn(ROWS, ITEMS)
    assert keys.features is not None
    keys.features[2] = float("nan")
    found = mask(keys, active=torch.tensor(active)).add(output, 0)
    for row, is_active in enumerate(active):
        assert torch.equal(found[row], output[row]) is not is_active


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_query_of_zeros_leaves_the_bits(dtype: torch.dtype) -> None:
    keys, output = made(), torch.randn(ROWS, ITEMS).to(dtype)
    for rows in (1, ROWS):
        zeros = RowValueMask(torch.zeros(rows, keys.query_width), None, keys)
        assert torch.equal(zeros.add(output, 0), output)
        assert zeros.add(output, 0).dtype == dtype


@given(seed=seeds, gradients=st.booleans())
def test_the_bits_of_a_row_do_not_depend_on_its_neighbours(seed: int, gradients: bool) -> None:
    keys, output = made(seed, 2), torch.randn(ROWS, ITEMS)
    one, others = mask(keys), mask(keys)
    mixed = RowValueMask(torch.cat([one.query[:1], others.query[1:]]), None, keys)
    with torch.set_grad_enabled(gradients):
        found = mixed.add(torch.cat([output[:1], torch.randn(ROWS - 1, ITEMS)]), 0)
        assert torch.equal(found[0], one.add(output, 0)[0])


@given(seed=seeds, strength=st.lists(st.floats(-3, 3, width=32), min_size=ROWS, max_size=ROWS))
def test_a_strength_scales_the_values(seed: int, strength: list[float]) -> None:
    keys, zeros, scale = made(seed), torch.zeros(ROWS, ITEMS), torch.tensor(strength)
    whole = mask(keys)
    scaled = row_value_mask(whole.query, keys, scale, None)
    assert torch.allclose(scaled.add(zeros, 0), scale[:, None] * whole.add(zeros, 0), atol=1e-4)
    assert torch.equal(row_value_mask(whole.query, keys, torch.zeros(ROWS), None).add(zeros, 0), zeros)


@given(seed=seeds, chosen=st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=5), shared=st.booleans())
def test_chosen_rows_have_the_values_that_they_have_among_all(seed: int, chosen: list[int], shared: bool) -> None:
    keys = made(seed, 2)
    own, number = mask(keys, 1 if shared else ROWS), len(chosen)
    whole = own.add(torch.zeros(ROWS, ITEMS), 0)
    alike = torch.tensor(chosen)
    for rows in (alike, torch.stack([alike, alike.flip(0), (alike + 1) % ITEMS])):
        expected = whole[:, rows] if rows.dim() == 1 else whole.gather(1, rows)
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                assert torch.allclose(own.add(torch.zeros(ROWS, number), 0, -1, rows), expected, atol=1e-4)


@pytest.mark.parametrize(("shape", "batch_dim", "feature_dim"), [((ROWS, 4, ITEMS), 0, -1), ((4, ROWS, ITEMS), 1, -1)])
def test_rows_in_any_dimension(shape: tuple[int, ...], batch_dim: int, feature_dim: int) -> None:
    keys = made()
    own, output = mask(keys), torch.randn(shape)
    values = own.add(torch.zeros(ROWS, ITEMS), 0)
    found = own.add(output, batch_dim, feature_dim)
    expected = output.movedim(batch_dim, 0) + values[:, None]
    assert torch.allclose(found.movedim(batch_dim, 0), expected, atol=1e-4)


def test_the_strides_of_an_output_stay() -> None:
    keys, output = made(), torch.randn(ITEMS, ROWS).T
    assert mask(keys).add(output, 0).stride() == output.stride()


def test_features_of_another_column_dimension() -> None:
    keys, output = made(), torch.randn(ROWS, ITEMS, 7)
    own = mask(keys)
    values = own.add(torch.zeros(ROWS, ITEMS), 0)
    assert torch.allclose(own.add(output, 0, -2), output + values[..., None], atol=1e-4)


def test_another_number_of_features_is_refused() -> None:
    with pytest.raises(RequestError, match=r"\(3, 12\) has 12 features, but 11 rows are described"):
        mask(made()).add(torch.zeros(ROWS, ITEMS + 1), 0)


def test_keys_without_features_are_refused() -> None:
    keys = made()
    keys.features = None
    with pytest.raises(RequestError, match="set_row_features"):
        keys.keys()


def test_parameters_do_not_depend_on_the_number_of_rows() -> None:
    shapes = [[p.shape for p in made(items=items).parameters()] for items in (2, 500)]
    assert shapes[0] == shapes[1]
    assert "features" not in made().state_dict()


# ---------------------------------------------------------------- keys that are kept


def change_in_place(keys: RowKeys) -> None:
    keys.network[0].weight.add_(1)


def change_data(keys: RowKeys) -> None:
    keys.network[2].bias.data = keys.network[2].bias.data + 1


def change_features(keys: RowKeys) -> None:
    assert keys.features is not None
    keys.features.mul_(2)


def other_features(keys: RowKeys) -> None:
    keys.features = torch.randn(ITEMS, WIDTH)


def other_dtype(keys: RowKeys) -> None:
    keys.double()


@pytest.mark.parametrize("change", [change_in_place, change_data, change_features, other_features, other_dtype])
def test_kept_keys_follow_every_change(change) -> None:
    keys = made()
    with torch.no_grad():
        first = keys.keys()
        assert keys.keys() is first
        change(keys)
        found = keys.keys()
    assert not torch.equal(found, first.to(found.dtype))
    assert torch.equal(found, keys.keys())  # with gradients, nothing is kept


def test_kept_keys_do_not_depend_on_autocast() -> None:
    keys, output = made(), torch.randn(ROWS, ITEMS)
    own = mask(keys)
    expected = own.add(output, 0)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = own.add(output, 0)
        assert torch.equal(inside, expected)
        assert torch.equal(own.add(output, 0), expected)


def test_kept_keys_of_inference_mode_serve_later_calls() -> None:
    keys = made()
    with torch.inference_mode():
        keys.features = torch.randn(ITEMS, WIDTH)
        inside = keys.keys()
    with torch.no_grad():
        assert torch.equal(keys.keys(), inside)


def test_keys_under_vmap_over_parameters() -> None:
    keys = made()
    stacked = {name: torch.stack([value, value + 1]) for name, value in keys.named_parameters()}

    def call(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(_Keys(keys), {f"keys.{n}": v for n, v in parameters.items()}, ())

    with torch.no_grad():
        assert torch.vmap(call)(stacked).shape == (2, ITEMS, keys.query_width)


class _Keys(torch.nn.Module):
    def __init__(self, keys: RowKeys) -> None:
        super().__init__()
        self.keys = keys

    def forward(self) -> Tensor:
        return self.keys.keys()


# ---------------------------------------------------------------- merging


def test_a_bias_takes_the_values_of_one_request() -> None:
    keys, bias, weight = made(), torch.randn(ITEMS), torch.randn(ITEMS, 4)
    own = mask(keys)
    for row in range(ROWS):
        folded = own.fold(weight, bias, row)
        assert folded[0] is weight
        assert torch.allclose(folded[1], own.add(bias.expand(ROWS, -1), 0)[row], atol=1e-5)
    with pytest.raises(MergeError, match="have to add a bias"):
        own.fold(weight, None, 0)


def test_there_is_no_mask_on_the_weight() -> None:
    with pytest.raises(UnsupportedError, match="added to an output"):
        mask(made()).weight_mask()
