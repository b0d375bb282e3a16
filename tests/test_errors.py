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
    assert str(error) == f"what happened (docs/errors.md#{name})"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_an_error_that_quotes_another_names_its_own_place_alone() -> None:
    inner = errors.ConfigError("no")
    assert str(AdapterFileError(f"a.json: {inner}")) == "a.json: no (docs/errors.md#AdapterFileError)"


def test_what_a_file_makes_endless_is_cut_and_keeps_both_ends() -> None:
    message = str(AdapterFileError("a.json: found " + "x" * 10**7 + ". Save it again."))
    assert len(message) < 9000
    assert message.startswith("a.json: found xxx")
    assert message.endswith("xxx. Save it again. (docs/errors.md#AdapterFileError)")


def test_every_class_has_its_place_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    places = re.findall(r"^## (\w+) \{ #(\w+) \}$", page, re.MULTILINE)
    assert sorted(places) == sorted((name, name) for name in CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_it_says_what_it_means(name: str) -> None:
    assert (CLASSES[name].__doc__ or "").strip().endswith(".")


def test_another_base_is_a_kind_of_unfit_file() -> None:
    assert issubclass(BaseModelMismatchError, AdapterFileError)
