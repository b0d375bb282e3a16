"""The tables of one place: accuracy, control, cost, hold-outs, ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmark.methods import OURS
from benchmark.report.groups import Group
from benchmark.report.tables import cell_text, markdown
from benchmark.variants import HOLD_OUTS

_ACCURACY = {
    "NDCG@10": ("truthful", "ndcg"),
    "HR@10": ("truthful", "hr"),
    "MRR@10": ("truthful", "mrr"),
    "× frozen": ("truthful", "ndcg_ratio"),
    "seen wordings": ("seen wordings truthful", "ndcg"),
    "shuffled requests": ("truthful, shuffled", "ndcg"),
    "replica": ("replica", "ndcg"),
    "replica, 100 negatives": ("replica, 100 negatives", "ndcg"),
}
_CONTROL = {
    "for: satisfaction": ("for", "satisfaction"),
    "for: gain": ("for", "normalised_gain"),
    "for: retention": ("for", "retention"),
    "unwatched: gain": ("for unwatched", "normalised_gain"),
    "mixed: gain": ("mixed", "normalised_gain"),
    "against: violation ratio": ("against", "violation_ratio"),
    "favourite: share": ("against favourite", "share"),
    "favourite: ratio": ("against favourite", "ratio"),
    "favourite: retention": ("against favourite", "retention"),
}
_NOTHING = {
    "empty": ("empty", "overlap"),
    "irrelevant": ("irrelevant", "overlap"),
    "contradictory": ("contradictory", "overlap"),
    "blank": ("blank", "overlap"),
    "for minus against": ("paired", "contrast"),
    "distinctness": ("shared", "distinctness"),
}
_HELD_OUT = {
    "unseen attributes: gain": ("unseen attributes for", "normalised_gain"),
    "seen attributes: gain": ("seen attributes for", "normalised_gain"),
    "unseen attributes: NDCG × frozen": ("unseen attributes truthful", "ndcg_ratio"),
    "seen attributes: NDCG × frozen": ("seen attributes truthful", "ndcg_ratio"),
    "unseen users: NDCG × frozen": ("unseen users truthful", "ndcg_ratio"),
    "seen users: NDCG × frozen": ("seen users truthful", "ndcg_ratio"),
}
_ABLATION = {
    "NDCG@10": _ACCURACY["NDCG@10"],
    "for: gain": _CONTROL["for: gain"],
    "for: retention": _CONTROL["for: retention"],
    "favourite: ratio": _CONTROL["favourite: ratio"],
    "empty": _NOTHING["empty"],
}


def place_tables(groups: Sequence[Group]) -> list[str]:
    """Return all tables of one place, as Markdown lines."""
    methods = [group for group in groups if group.variant is None]
    held = [group for group in groups if group.variant in HOLD_OUTS]
    unmet = [group for group in methods if group.get("unseen users truthful", "ndcg_ratio")]
    ablations = [group for group in groups if group.variant is not None and group.variant not in HOLD_OUTS]
    counted = max(
        (int(group.tracks["truthful"]["users"]) for group in methods if "truthful" in group.tracks), default=0
    )
    lines = [f"{counted:,} users count in the truthful track.", "", "### Accuracy", "", *_table(methods, _ACCURACY)]
    lines += ["### Control", "", *_table(methods, _CONTROL)]
    lines += ["### Requests that ask for nothing", "", *_table(methods, _NOTHING)]
    lines += ["### Cost", "", *_costs(methods)]
    if held or unmet:
        lines += ["### Held out from training", "", *_table([*held, *unmet], _HELD_OUT, "variant")]
    if ablations:
        shown = [*(group for group in methods if group.method == OURS), *ablations]
        lines += ["### Ablations", "", *_table(shown, _ABLATION, "one change"), *_costs(shown)]
    return lines


def _table(groups: Sequence[Group], columns: Mapping[str, tuple[str, str]], first: str = "method") -> list[str]:
    """Return a Markdown table with a row for each group; columns without any figure are left out."""
    kept = {name: place for name, place in columns.items() if any(group.get(*place) for group in groups)}
    rows = [[group.label, *(cell_text(group.get(*place)) for place in kept.values())] for group in groups]
    return markdown([first, *kept], rows) if kept else []


def _costs(groups: Sequence[Group]) -> list[str]:
    rows = [
        [
            group.label,
            " ".join(map(str, group.seeds)),
            f"{group.trainable:,}",
            f"{group.seconds['train']:.0f}",
            f"{group.seconds['train_cpu']:.0f}" if "train_cpu" in group.seconds else "",
            f"{group.seconds['evaluate']:.0f}",
            cell_text(None if group.strength is None else group.strength["spearman"]),
            ", ".join(group.trained_on) if group.trainable else "",
        ]
        for group in groups
    ]
    head = ["method", "seeds", "trainable", "training, s", "of it processor time", "measuring, s", "strength: Spearman"]
    return markdown([*head, "trained on"], rows)
