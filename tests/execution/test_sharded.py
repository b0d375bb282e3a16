"""Sharded models (FSDP2): masks work under ``fully_shard``, and everything else is refused by name."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks
from cramer_peft.errors import TargetModuleError, UnsupportedError


@pytest.fixture
def mesh() -> Iterator[object]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8)).eval()


def config() -> RequestMaskConfig:
    return RequestMaskConfig(target_modules=["0"], request_dim=5, init_weights=False)


def test_a_sharded_handle(mesh, tmp_path) -> None:
    masks, x, vectors = inject_request_masks(base(), config()), torch.randn(3, 8), torch.randn(3, 5)
    expected = masks(x, request=vectors).detach()
    fully_shard(masks, mesh=mesh)
    output = masks(x, request=vectors)
    assert torch.equal(output, expected)
    output.sum().backward()
    for call in (lambda: masks.merge_request(vectors[0]), lambda: masks.mask_state(vectors)):
        with pytest.raises(UnsupportedError, match="the generator is sharded"):
            call()
    with pytest.raises(UnsupportedError, match="tensors of the adapter are sharded"):
        masks.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    whole = inject_request_masks(base(), config())
    whole.load_state_dict(get_model_state_dict(masks, options=StateDictOptions(full_state_dict=True)))
    whole.save_pretrained(tmp_path)
    assert torch.equal(load_request_masks(base(), tmp_path)(x, request=vectors), expected)


def test_a_sharded_model_is_refused(mesh) -> None:
    model = base()
    fully_shard(model[0], mesh=mesh)
    with pytest.raises(TargetModuleError, match=r"'0' is a \w+ whose weight is sharded"):
        inject_request_masks(model, config())
