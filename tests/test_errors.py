import pickle
import re
from pathlib import Path

import pytest

from cramer_peft import errors
from cramer_peft.errors import AdapterFileError, BaseModelMismatchError, CramerError

BUILT_IN: dict[str, type[Exception]] = {
    "ConfigError": ValueError,
    "TargetModuleError": ValueError,
    "RequestError": ValueError,
    "EncoderError": ValueError,
    "MissingExtraError": ImportError,
    "AdapterFileError": ValueError,
    "BaseModelMismatchError": ValueError,
    "EffectError": RuntimeError,
    "MergeError": ValueError,
    "CheckpointingError": RuntimeError,
    "UnsupportedError": NotImplementedError,
    "DataError": ValueError,
    "DownloadError": OSError,
    "MissingModelError": OSError,
}
CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)
}


def test_every_error_is_in_this_test() -> None:
    assert set(CLASSES) == {"CramerError", *BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_is_ours_and_a_built_in(name: str) -> None:
    kind = CLASSES[name]
    assert issubclass(kind, CramerError)
    assert issubclass(kind, BUILT_IN[name])
    for base in (CramerError, BUILT_IN[name]):
        with pytest.raises(base, match="what happened"):
            raise kind("what happened")


@pytest.mark.parametrize("name", CLASSES)
def test_its_message_survives(name: str) -> None:
    error = CLASSES[name]("what happened")
    assert error.args == ("what happened",)
    assert str(error) == "what happened"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_what_a_file_makes_endless_is_cut_and_keeps_both_ends() -> None:
    message = str(AdapterFileError("a.json: found " + "x" * 10**7 + ". Save it again."))
    assert len(message) < 9000
    assert message.startswith("a.json: found xxx")
    assert message.endswith("xxx. Save it again.")


def test_every_class_has_its_place_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    places = re.findall(r"^## (\w+) \{ #(\w+) \}$", page, re.MULTILINE)
    assert sorted(places) == sorted((name, name) for name in CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_it_says_what_it_means(name: str) -> None:
    assert (CLASSES[name].__doc__ or "").strip().endswith(".")


def test_another_base_is_a_kind_of_unfit_file() -> None:
    assert issubclass(BaseModelMismatchError, AdapterFileError)


def test_no_message_sends_to_a_page_that_an_installed_package_lacks() -> None:
    package = Path(errors.__file__).parent
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"""["'].*(\bdocs/\w|\.md\b|see the docs)""", line) and '"""' not in line
    ]
    allowed = ("README.md", "validation.md")  # a model card, and Finding.docs
    assert [line for line in found if not any(name in line for name in allowed)] == []
