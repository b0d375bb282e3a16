from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cramer_peft.errors import DataError

pytest.importorskip("matplotlib")

from benchmark.report.plots import mean_interval_of, plot_accuracy_control, plot_strength, write_plots

GENRES = [
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
]  # fmt: skip
# close together on purpose: invented numbers of the size that the benchmark gives
POINTS = {
    "frozen": (0.106, 0.12),
    "paper's form": (0.126, 0.19),
    "paper's form, our loss": (0.131, 0.2),
    "one static mask": (0.107, 0.121),
    "shuffled requests": (0.103, 0.122),
    "text fusion": (0.199, 0.7),
    "LLM-ESR": (0.108, 0.125),
    "expert FiLM": (0.166, 0.38),
    "request LoRA": (0.2, 0.5),
    "query token": (0.128, 0.195),
    "query state": (0.165, 0.375),
    "query state, tuned": (0.21, 0.52),
    "parsed filter": (0.235, 0.93),
    "oracle filter": (0.24, 0.995),
    "ours": (0.212, 0.72),
}


def interval(value: float, width: float = 0.012) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def sample(method: str, seed: int, **overrides: Any) -> dict[str, Any]:
    """A result in the form of the benchmark's JSON; the numbers are invented."""
    rng = random.Random(f"{method}{seed}")
    ndcg, satisfaction = POINTS[method]
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    rise = satisfaction - 0.12
    before = [0.45 * 0.82**index for index in range(len(GENRES))]
    cell = {"data": "movielens-100k", "protocol": "leave-one-out", "backbone": "sasrec", "method": method}
    return {
        "cell": {**cell, "seed": seed, "variant": None},
        "tracks": {
            "truthful": {"ndcg": interval(ndcg + rng.gauss(0, 0.002))},
            "for": {"satisfaction": interval(satisfaction + rng.gauss(0, 0.01), 0.02)},
        },
        "strength": {
            "alphas": alphas,
            "satisfaction": [0.12 + rise * (1 - math.exp(-2 * a)) + a * rng.gauss(0, 0.01) for a in alphas],
            "spearman": interval(0.95),
        },
        "attribute_shares": {
            "attributes": GENRES,
            "before": before,
            "for": [min(0.95, share + 0.5) for share in before],
            "against": [share * 0.2 for share in before],
        },
        "spill_over": {
            "attributes": GENRES,
            "matrix": [[0.5 if i == j else rng.gauss(-0.02, 0.04) for j in range(18)] for i in range(18)],
        },
        **overrides,
    }


def test_each_setting_gets_its_four_pictures(tmp_path: Path) -> None:
    results = [sample(method, seed) for method in POINTS for seed in range(3)]
    paths = write_plots(results, tmp_path / "new")
    names = [path.name for path in paths]
    ending = "movielens-100k-leave-one-out-sasrec.png"
    assert names == [f"{kind}-{ending}" for kind in ("accuracy-control", "strength", "shares", "spill-over")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_what_the_results_do_not_hold_is_not_drawn(tmp_path: Path) -> None:
    bare = {"strength": None, "attribute_shares": None, "spill_over": None}
    paths = write_plots([sample("frozen", 0, **bare)], tmp_path)
    assert [path.name.startswith("accuracy-control") for path in paths] == [True]
    assert write_plots([sample("frozen", 0, tracks={}, **bare)], tmp_path / "none") == []


def test_settings_get_files_of_their_own_and_ablations_none(tmp_path: Path) -> None:
    first, second, ablation = (sample("ours", 0) for _ in range(3))
    second["cell"] |= {"data": "steam au/2"}
    ablation["cell"] |= {"data": "other", "variant": "rank 1"}
    paths = write_plots([first, second, ablation], tmp_path)
    assert len(paths) == 8
    assert sorted({path.name.partition("control-")[2] for path in paths} - {""}) == [
        "movielens-100k-leave-one-out-sasrec.png",
        "steam-au-2-leave-one-out-sasrec.png",
    ]


@pytest.mark.parametrize("draw", [plot_accuracy_control, plot_strength])
def test_every_method_is_named_beside_the_axes_in_a_style_of_its_own(draw: Callable[..., Any]) -> None:
    figure = draw({method: [sample(method, 0)] for method in POINTS}, "invented")
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    (legend,), (axes,) = figure.legends, figure.axes
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(POINTS)
    boxes = [text.get_window_extent(renderer) for text in legend.get_texts()]
    assert all(box.x0 > axes.get_tightbbox(renderer).x1 and box.x1 < figure.bbox.x1 for box in boxes)
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    assert boxes[-1].y0 > figure.bbox.y0
    lines = [line for line in axes.lines if line.get_label() in POINTS]
    styles = {(line.get_marker(), line.get_markerfacecolor(), line.get_markeredgecolor()) for line in lines}
    assert len(styles) == len(lines) == len(POINTS)


def test_the_legend_follows_the_picture_from_the_top_down() -> None:
    figure = plot_accuracy_control({method: [sample(method, 0)] for method in POINTS}, "invented")
    heights = {line.get_label(): line.get_ydata()[0] for line in figure.axes[0].lines if line.get_label() in POINTS}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == sorted(POINTS, key=lambda name: -heights[name])


def test_seeds_are_averaged() -> None:
    results = [{"tracks": {"truthful": {"ndcg": interval(value)}}} for value in (0.1, 0.3)]
    assert mean_interval_of([*results, {"tracks": {}}], "truthful", "ndcg") == pytest.approx((0.2, 0.188, 0.212))
    assert mean_interval_of([{}], "truthful", "ndcg") is None


def test_a_matrix_may_have_gaps(tmp_path: Path) -> None:
    result = sample("ours", 0)
    result["spill_over"]["matrix"][3] = [None] * 18
    result["spill_over"]["matrix"][4][4] = math.nan
    assert len(write_plots([result], tmp_path)) == 4


def test_another_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\[0\]: found cell None"):
        write_plots([{}], tmp_path)
    with pytest.raises(DataError, match=r"truthful/ndcg: found 0\.5, expected value, low and high"):
        mean_interval_of([{"tracks": {"truthful": {"ndcg": 0.5}}}], "truthful", "ndcg")
    other = sample("ours", 1)
    other["strength"]["alphas"] = [0.0, 1.0]
    with pytest.raises(DataError, match="ours: the seeds' strength sweeps differ"):
        plot_strength({"ours": [sample("ours", 0), other]}, "invented")
    other = sample("ours", 1)
    other["attribute_shares"]["attributes"] = GENRES[::-1]
    with pytest.raises(DataError, match="ours: the seeds' attributes differ"):
        write_plots([sample("ours", 0), other], tmp_path)
