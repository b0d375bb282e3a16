"""What one training step keeps for its gradients, by catalogue size, with all items scored and with a sample.

The first table is of a backbone (SASRec), the second of the generator of its default masks, which add to the scores.

python examples/training_memory.py --items 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from cramer_peft import RequestMaskConfig, RequestMaskModel, inject_request_masks
from cramer_peft.recsys.backbones import SASRec, config_for
from cramer_peft.recsys.backbones.sampling import DEFAULT_NEGATIVES
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.histories import HistoryWindows
from cramer_peft.recsys.training.generator_training import GeneratorTrainer, generator_arguments
from cramer_peft.recsys.training.request_batches import GeneratorOptions, RequestCollator

FEATURES = 192  # of an item: attributes, title and embedding, 64 each


def kept_bytes(step: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of all that a step keeps for its gradients, beside the parameters; each storage counts once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = step()
    total = sum(kept.values())
    loss.backward()
    return total


def of_backbone(items: int, rows: int, negatives: int | None) -> int:
    """What a step of SASRec keeps."""
    torch.manual_seed(0)
    model = SASRec(SASRec.configure(items)).train()
    model.negatives = negatives
    item_ids = torch.randint(1, items + 1, (rows, model.max_length))
    return kept_bytes(lambda: model(item_ids, labels=item_ids - 1)["loss"], model.parameters())


class GeneratorSteps:
    """Steps of a generator's training, on made-up histories.

    Args:
        items: Of the catalogue.
        rows: Histories for each step.
    """

    def __init__(self, items: int, rows: int) -> None:
        torch.manual_seed(0)
        backbone = SASRec(SASRec.configure(items)).eval()
        config = config_for(backbone, RequestMaskConfig(encoder="hashing"))
        self.masks: RequestMaskModel = inject_request_masks(backbone, config)
        self.masks.set_row_features("", torch.randn(items, FEATURES))
        names = tuple(map(str, range(items)))
        flags = torch.nn.functional.one_hot(torch.arange(items) % 3, 3).bool()
        self.catalogue = Catalogue(names, names, ("Comedy", "Drama", "Horror"), flags)
        histories = [torch.randint(items, (backbone.max_length + 1,)) for _ in range(rows)]
        windows = HistoryWindows(histories, backbone.max_length)
        self.windows = [windows[row] for row in range(rows)]

    def kept(self, negatives: int | None) -> int:
        """What a step keeps."""
        options = GeneratorOptions()
        collator = RequestCollator(self.masks, self.catalogue, options, seed=0, negatives=negatives)
        batch = collator(self.windows)
        with tempfile.TemporaryDirectory() as folder:
            arguments = generator_arguments(folder, options, 0, False)
            trainer = GeneratorTrainer(model=self.masks, args=arguments, options=options)
            batch = {name: value.to(arguments.device) for name, value in batch.items()}
            return kept_bytes(lambda: trainer.compute_loss(self.masks, batch), self.masks.parameters())


def kept_by(trained: str, items: int, rows: int) -> Callable[[int | None], int]:
    """What a step of a "backbone" or a "generator" keeps, by the number of negatives."""
    return partial(of_backbone, items, rows) if trained == "backbone" else GeneratorSteps(items, rows).kept


def main() -> None:
    """Print two tables in MB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 2_000])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--full-up-to", type=int, default=100_000, help="largest catalogue of which all is scored")
    arguments = parser.parse_args()
    flat = True
    for trained in ("backbone", "generator"):
        print(f"{trained}\n{'items':>9} {'table, MB':>10} {'all items, MB':>14} {f'{DEFAULT_NEGATIVES} items, MB':>14}")
        sampled = []
        for items in arguments.items:
            kept = kept_by(trained, items, arguments.rows)
            full = f"{kept(None) / 1e6:.1f}" if items <= arguments.full_up_to else "not tried"
            sampled.append(kept(DEFAULT_NEGATIVES))
            table = 4 * SASRec.configure(items).hidden_size * (items + 1)
            print(f"{items:>9} {table / 1e6:>10.1f} {full:>14} {sampled[-1] / 1e6:>14.1f}", flush=True)
        # a generator's sample holds the next items, of which fewer are distinct where there are few items
        flat &= max(sampled) <= 1.05 * min(sampled)
    print(f"a step on a sample keeps the same for every size: {flat}")


if __name__ == "__main__":
    main()
