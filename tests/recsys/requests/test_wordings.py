"""What is asked of the wordings beyond what ``test_requests.py`` checks of them."""

import re
import string

import pytest
from teaching.sentences import template_pieces, wording

from cramer_peft.recsys.requests.attributes import FAMILIES
from cramer_peft.recsys.requests.wordings import TEST_TEMPLATES, TRAIN_TEMPLATES

SETS = {"train": TRAIN_TEMPLATES, "test": TEST_TEMPLATES}
FIELDS = {
    "for": {"wanted"},
    "against": {"unwanted"},
    "for_pair": {"wanted", "wanted2"},
    "against_pair": {"unwanted", "unwanted2"},
    "mixed": {"wanted", "unwanted"},
    "none": set(),
}


def bare(template: str) -> str:
    """Without case, punctuation and spaces."""
    return re.sub(r"[^a-z{}]", "", template.lower())


@pytest.mark.parametrize("name", SETS)
def test_each_wording_has_the_fields_of_its_family_once(name: str) -> None:
    assert tuple(SETS[name]) == FAMILIES
    for family, templates in SETS[name].items():
        for template in templates:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
            assert sorted(fields) == sorted(FIELDS[family]), template


@pytest.mark.parametrize("name", SETS)
def test_wordings_are_clean_text(name: str) -> None:
    for templates in SETS[name].values():
        for template in templates:
            assert template == " ".join(template.split()), template
            assert 2 < len(template) < 160
            assert template.isascii(), template


def test_no_test_wording_is_a_training_wording_of_any_family() -> None:
    trained = {bare(template) for templates in TRAIN_TEMPLATES.values() for template in templates}
    tested = [bare(template) for templates in TEST_TEMPLATES.values() for template in templates]
    assert len(set(tested)) == len(tested)
    assert not trained & set(tested)


def test_no_training_wording_holds_one_of_the_test() -> None:
    tested = [wording(template_pieces(template)) for templates in TEST_TEMPLATES.values() for template in templates]
    for templates in TRAIN_TEMPLATES.values():
        for template in templates:
            said = f" {wording(template_pieces(template))} "
            # Counted, not shown: whoever works on the method does not look at the wordings of the test.
            assert sum(f" {one} " in said for one in tested) == 0


def test_no_wording_names_what_only_one_catalogue_has() -> None:
    for templates in (*TRAIN_TEMPLATES.values(), *TEST_TEMPLATES.values()):
        for template in templates:
            assert not re.search(r"\b(movies?|films?|books?|games?|songs?|watch|read|listen)\b", template.lower()), (
                template
            )
