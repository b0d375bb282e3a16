import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from cramer_peft import inject_request_masks, load_request_masks


def around(between: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Linear(6, 8), between=between, last=nn.Linear(8, 4)))


def batch_norm() -> nn.Module:
    return around(nn.BatchNorm1d(8))


def nested_batch_norm() -> nn.Module:
    return around(nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8, momentum=None)))


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
    return around(nn.Sequential(nn.Unflatten(0, (-1, 3)), norm, nn.Flatten(0, 1)))


def spectral() -> nn.Module:
    return around(parametrizations.spectral_norm(nn.Linear(8, 8)))


def spectral_by_hook() -> nn.Module:
    return around(spectral_norm(nn.Linear(8, 8)))


KINDS = [batch_norm, nested_batch_norm, instance_norm, spectral, spectral_by_hook]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def same(before: list[torch.Tensor], model: nn.Module) -> bool:
    return all(map(torch.equal, before, model.buffers()))


TARGETS = ["first", "last"]


@kinds
@pytest.mark.parametrize("door", [inject_request_masks, get_peft_model], ids=["ours", "peft"])
def test_they_stay_whoever_calls_train(kind, door, make_config) -> None:
    model, x = kind().eval(), torch.randn(6, 6)
    frozen, before = model(x), buffers(model)
    assert before
    masks = door(model, make_config(target_modules=TARGETS, request_dim=5))
    for train in (masks.train, model.train, model[1].train, lambda: model.apply(lambda module: module.train())):
        train()
        model(3 * x + 1)
        masks(3 * x + 1, request=torch.randn(5)).sum().backward()
        assert same(before, model)
    masks.eval()
    assert torch.equal(masks(x), frozen)


def test_dropout_is_still_random_in_training(make_config) -> None:
    model, x = nested_batch_norm().eval(), torch.randn(6, 6)
    masks = inject_request_masks(model, make_config(target_modules=["first"], request_dim=5)).train()
    assert not torch.equal(masks(x), masks(x))


@kinds
@pytest.mark.parametrize("train", [False, True])
def test_unloading_lets_them_move_again(kind, train: bool, make_config, snapshot) -> None:
    model, x = kind().train(train), torch.randn(6, 6)
    before = snapshot(model)
    masks = inject_request_masks(model, make_config(target_modules=TARGETS, request_dim=5)).train()
    masks(x, request=torch.randn(5))
    masks.unload()
    assert before.differences(model) == []
    values = buffers(model)
    model.eval()(x)
    assert same(values, model)
    model.train()(x)
    assert all(module.training for module in model.modules())
    assert not same(values, model)


@kinds
def test_a_second_adapter_and_a_failing_one_keep_them(kind, make_config) -> None:
    model, x = kind().eval(), torch.randn(6, 6)
    before = buffers(model)
    config = make_config(target_modules=TARGETS, request_dim=5)
    masks = inject_request_masks(model, config)
    masks.add_adapter("second", config)
    with pytest.raises(ValueError, match="no module matches"):
        masks.add_adapter("third", make_config(target_modules=["nothing"]))
    masks.delete_adapter("default")
    masks.train()(x, request=torch.randn(5))
    assert same(before, model)
    masks.unload()
    model.train()(x)
    assert not same(before, model)


@kinds
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda masks: pickle.loads(pickle.dumps(masks))], ids=["copy", "pickle"]
)
def test_copies_keep_them_and_give_them_free(kind, copied, make_config) -> None:
    if kind is spectral and copied is not copy.deepcopy:
        pytest.skip("torch pickles no parametrized module")
    model, x = kind().eval(), torch.randn(6, 6)
    masks = inject_request_masks(model, make_config(target_modules=TARGETS, request_dim=5))
    other = copied(masks)
    before = buffers(other.model)
    other.train()(x, request=torch.randn(5))
    assert same(before, other.model)
    plain = other.unload()
    plain.train()(x)
    assert not same(before, plain)
    assert not any(module.training for module in masks.modules() if isinstance(module, nn.BatchNorm1d))


def test_a_norm_that_is_trained_whole_moves_and_is_saved(make_config, tmp_path) -> None:
    model, x = batch_norm().eval(), torch.randn(6, 6)
    fresh, before = copy.deepcopy(model), buffers(model)
    config = make_config(target_modules=["first"], request_dim=5, modules_to_save=["between"])
    masks = inject_request_masks(model, config).train()
    masks(3 * x + 1, request=torch.randn(5))
    own = masks.eval().model[1].modules_to_save["default"]
    assert not torch.equal(own.running_mean, before[0])
    assert torch.equal(masks.model[1].original_module.running_mean, before[0])
    masks.save_pretrained(tmp_path)
    again = load_request_masks(fresh, tmp_path).eval()
    assert torch.equal(again(x), masks(x))
    assert torch.equal(masks.unload()[1].running_mean, before[0])


def test_a_norm_without_statistics_follows_train(make_config) -> None:
    model = around(nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.LayerNorm(8)))
    masks = inject_request_masks(model, make_config(target_modules=["first"], request_dim=5))
    assert all(module.training for module in masks.train().model.modules())
