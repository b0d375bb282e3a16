"""Whether requests are answered by items that neither the backbone nor the generator was trained on.

A share of the items is taken out of training: they are not in the catalogue, and not in the histories. Then they are
added by their texts alone. Each user asks for one attribute, the new items are ranked alone, and beside them as many of
the others, drawn at random. A gain of 1 is that of a filter that knows the answer, 0 that of the frozen model.

python examples/new_items.py --data movielens-100k
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from training_profile import made_up

from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import load_dataset
from cramer_peft.recsys.data.histories import pad_histories, seen_mask
from cramer_peft.recsys.data.splits import Split, Stage
from cramer_peft.recsys.evaluation.bootstrap import statistic_interval
from cramer_peft.recsys.evaluation.metrics import best_share, expected_share
from cramer_peft.recsys.evaluation.tracks import BlindTracks
from cramer_peft.recsys.evaluation.users import batched_scores, mask_scorer
from cramer_peft.recsys.masks import mask_backbone
from cramer_peft.recsys.recommender import RequestRecommender
from cramer_peft.recsys.requests.request_encoders import request_encoder
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES
from cramer_peft.recsys.training.backbone_training import BackboneOptions, backbone_options, train_backbone
from cramer_peft.recsys.training.generator_training import generator_options, train_generator
from cramer_peft.recsys.training.request_batches import GeneratorOptions


def taken_out(
    catalogue: Catalogue, sequences: Sequence[Tensor], share: float, seed: int
) -> tuple[Catalogue, Catalogue, Split]:
    """The catalogue without a share of its items, these items, and the sequences without them if 3 items are left."""
    order = torch.randperm(len(catalogue), generator=torch.Generator().manual_seed(seed))
    new, known = (part.sort().values for part in order.tensor_split([max(1, round(share * len(catalogue)))]))
    numbers = torch.full((len(catalogue),), -1).index_copy(0, known, torch.arange(len(known)))
    left = [row[row >= 0] for row in (numbers[sequence] for sequence in sequences)]
    left = [row for row in left if len(row) >= 3]
    split = Split(tuple(row[:-2] for row in left), *torch.stack([row[-2:] for row in left], 1))
    return _items(catalogue, known), _items(catalogue, new), split


def _items(catalogue: Catalogue, items: Tensor) -> Catalogue:
    ids, titles = (tuple(column[item] for item in items) for column in (catalogue.item_ids, catalogue.titles))
    return Catalogue(ids, titles, catalogue.attributes, catalogue.item_attributes[items])


def measured(recommender: RequestRecommender, new: int, split: Split, stage: Stage, k: int, seed: int) -> Tensor:
    """Satisfaction without a request, with it, and at best, among the last items, then among others, (users, 6)."""
    catalogue, histories = recommender.catalogue, split.history(stage)
    templates = TEST_TEMPLATES if stage == "test" else TRAIN_TEMPLATES
    requests = BlindTracks(catalogue.attributes, templates, seed).counterfactual_for(len(histories)).requests
    fits = catalogue.item_attributes.T[[catalogue.attributes.index(request.wanted[0]) for request in requests]]
    item_ids = pad_histories(histories, int(recommender.masks.model.max_length))  # type: ignore[arg-type]
    texts: tuple[list[str | None], ...] = [None] * len(requests), [request.text for request in requests]
    with torch.no_grad():
        scores = [batched_scores(mask_scorer(recommender.masks), item_ids, given) for given in texts]
    order = torch.randperm(len(catalogue) - new, generator=torch.Generator().manual_seed(seed))
    among = torch.arange(len(order), len(catalogue)), order[:new]
    seen = seen_mask(histories, len(catalogue))  # users who have seen too many of the others are left out
    rows = torch.stack([(~seen[:, items]).sum(1) >= k for items in among]).all(0)
    columns = []
    for items in among:
        own = seen[rows][:, items], fits[rows][:, items]
        columns += [expected_share(given[rows][:, items], *own, k) for given in scores]
        columns.append(best_share(*own[::-1], k))
    return torch.stack(columns, 1).double()


def gain(means: Tensor) -> Tensor:
    """The share of the possible gain, of means (..., 3)."""
    return (means[..., 1] - means[..., 0]) / (means[..., 2] - means[..., 0])


def main() -> None:
    """Train without some items, add them, print a table of gains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set's name or folder; left out: made-up data, and a short training")
    parser.add_argument("--backbone", default="sasrec", help="sasrec, gru4rec or bert4rec")
    parser.add_argument("--share", type=float, default=0.05, help="of the items that are taken out")
    parser.add_argument("--k", type=int, default=5, help="length of the lists")
    parser.add_argument("--steps", type=int, help="of the generator's training")
    parser.add_argument("--stage", choices=("validation", "test"), default="validation")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.data is None:
        catalogue, whole = made_up(users=40, items=200, attributes=6, events=20)
        sequences, epochs, steps = whole.train, 1, 60
    else:
        catalogue, interactions = load_dataset(given.data)
        sequences, epochs, steps = interactions.sequences, None, None
    known, new, split = taken_out(catalogue, sequences, given.share, given.seed)
    print(f"{len(new)} of {len(catalogue)} items are taken out, {len(split.train)} users are left", flush=True)
    options = backbone_options(given.backbone) if epochs is None else BackboneOptions(epochs)
    backbone = train_backbone(given.backbone, known, split, options, given.seed, progress=False)
    print("the backbone is trained", flush=True)
    torch.manual_seed(given.seed)
    masks = mask_backbone(backbone, known, encoder=request_encoder(None, known, backbone))
    budget = replace(generator_options(backbone), steps=given.steps or steps or GeneratorOptions().steps)
    train_generator(masks, known, split, budget, given.seed, progress=False)
    print("the generator is trained", flush=True)
    recommender = RequestRecommender(masks, known).add_items(new)
    print("the items are added", flush=True)
    found = measured(recommender, len(new), split, given.stage, given.k, given.seed)
    print(f"{'candidates':<14}{'frozen':>9}{'request':>9}{'best':>9}{'gain':>9}")
    for name, means in (("new", found[:, :3].mean(0)), ("old", found[:, 3:].mean(0))):
        print(f"{f'{len(new)} {name}':<14}" + "".join(f"{float(value):>9.3f}" for value in (*means, gain(means))))
    ratio = statistic_interval(found, lambda means: gain(means[:, :3]) / gain(means[:, 3:]), seed=given.seed)
    print(f"gain of new items over that of old ones, {len(found)} users: {ratio}")


if __name__ == "__main__":
    main()
