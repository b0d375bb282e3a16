from __future__ import annotations

import random

import pytest
from benchmark.baselines import RequestParser

from cramer_peft.recsys.requests.attribute_requests import FAMILIES, RequestGenerator
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

ATTRIBUTES = ("Children's", "Comedy", "Drama", "Film-Noir", "Sci-Fi", "War")


@pytest.mark.parametrize(
    ("text", "wanted", "unwanted"),
    [
        ("I want comedy", ("Comedy",), ()),
        ("I WANT COMEDY!", ("Comedy",), ()),
        ("Please, no comedy", (), ("Comedy",)),
        ("Give me sci-fi, but without drama", ("Sci-Fi",), ("Drama",)),
        ("I want sci fi", ("Sci-Fi",), ()),
        ("I want scifi", ("Sci-Fi",), ()),
        ("Show me some film noir", ("Film-Noir",), ()),
        ("Show me some film-noirs", ("Film-Noir",), ()),
        ("I want children's", ("Children's",), ()),
        ("I want the warlike and the dramatic", (), ()),
        ("whatever you think", (), ()),
        ("", (), ()),
    ],
)
def test_what_it_reads(text: str, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> None:
    request = RequestParser(ATTRIBUTES)(text)
    assert (request.wanted, request.unwanted, request.text) == (wanted, unwanted, text)
    assert request.family == (
        "mixed" if wanted and unwanted else "for" if wanted else "against" if unwanted else "none"
    )


@pytest.mark.parametrize(("templates", "least"), [(TRAIN_TEMPLATES, 0.97), (TEST_TEMPLATES, 0.7)])
def test_how_often_it_reads_right(templates: dict[str, tuple[str, ...]], least: float) -> None:
    parser, rng = RequestParser(ATTRIBUTES), random.Random(0)
    first = {family: lines[:1] for family, lines in templates.items()}  # each generator checks all that it is given
    right = []
    for family in FAMILIES:
        for line in templates[family]:
            made = RequestGenerator(ATTRIBUTES, {**first, family: (line,)}).counterfactual(rng, family)
            read = parser(made.text)
            right.append({*made.wanted} == {*read.wanted} and {*made.unwanted} == {*read.unwanted})
    assert sum(right) / len(right) >= least


def test_it_learns_from_the_wordings_given() -> None:
    odd = {name: TRAIN_TEMPLATES[name] for name in FAMILIES} | {
        "for": ("zap {wanted}", "zap the {wanted}"),
        "against": ("zip {unwanted}", "zip the {unwanted}"),
    }
    parser = RequestParser(ATTRIBUTES, odd)
    assert parser("zap drama").wanted == ("Drama",)
    assert parser("zip drama").unwanted == ("Drama",)


def test_no_attributes_no_names() -> None:
    assert RequestParser(())("anything at all").family == "none"
