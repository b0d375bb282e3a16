"""What one training step of SASRec keeps for its gradients, by catalogue size, with all items scored and with a sample.

python examples/training_memory.py --items 10000 100000 1000000
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from cramer_peft.recsys.backbones import SASRec
from cramer_peft.recsys.backbones.sampling import DEFAULT_NEGATIVES


def kept_bytes(model: SASRec, item_ids: Tensor) -> int:
    """Bytes of all that a step keeps for its gradients, beside the parameters; each storage counts once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(item_ids, labels=item_ids - 1)["loss"]
    total = sum(kept.values())
    loss.backward()
    return total


def main() -> None:
    """Print a table in MB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 2_000])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--full-up-to", type=int, default=100_000, help="largest catalogue of which all is scored")
    arguments = parser.parse_args()
    print(f"{'items':>9} {'table, MB':>10} {'all items, MB':>14} {f'{DEFAULT_NEGATIVES} items, MB':>14}")
    kept = set()
    for items in arguments.items:
        torch.manual_seed(0)
        model = SASRec(SASRec.configure(items)).train()
        item_ids = torch.randint(1, items + 1, (arguments.rows, model.max_length))
        full = f"{kept_bytes(model, item_ids) / 1e6:.1f}" if items <= arguments.full_up_to else "not tried"
        model.negatives = DEFAULT_NEGATIVES
        sampled = kept_bytes(model, item_ids)
        kept.add(sampled)
        print(f"{items:>9} {model.head.weight.nbytes / 1e6:>10.1f} {full:>14} {sampled / 1e6:>14.1f}")
    print(f"a step on a sample keeps the same for every size: {len(kept) == 1}")


if __name__ == "__main__":
    main()
