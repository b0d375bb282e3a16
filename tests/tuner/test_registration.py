import pytest
from peft import mapping

from cramer_peft import RequestMaskConfig, RequestMaskModel
from cramer_peft.errors import CramerError
from cramer_peft.tuner.registration import PREFIX, RequestMaskPeftType, register


@pytest.fixture(autouse=True)
def _tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "TUNER", "PREFIX"):
        table = getattr(mapping, f"PEFT_TYPE_TO_{name}_MAPPING")
        monkeypatch.setattr(mapping, f"PEFT_TYPE_TO_{name}_MAPPING", dict(table))


def test_peft_finds_us_by_the_string() -> None:
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["REQUEST_MASK"] is RequestMaskConfig
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING["REQUEST_MASK"] is RequestMaskModel
    assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING["REQUEST_MASK"] == PREFIX
    assert RequestMaskPeftType.REQUEST_MASK.value == "REQUEST_MASK"


def test_registering_again_does_nothing() -> None:
    before = dict(mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    register(RequestMaskConfig, RequestMaskModel)
    assert before == mapping.PEFT_TYPE_TO_CONFIG_MAPPING


def test_another_method_of_the_same_name_is_refused() -> None:
    with pytest.raises(CramerError, match="REQUEST_MASK"):
        register(dict, RequestMaskModel)
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["REQUEST_MASK"] is RequestMaskConfig


def test_another_method_of_the_same_prefix_is_refused() -> None:
    for name in ("CONFIG", "TUNER", "PREFIX"):
        del getattr(mapping, f"PEFT_TYPE_TO_{name}_MAPPING")["REQUEST_MASK"]
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING["OTHER"] = PREFIX
    with pytest.raises(CramerError, match=PREFIX):
        register(RequestMaskConfig, RequestMaskModel)
    assert "REQUEST_MASK" not in mapping.PEFT_TYPE_TO_CONFIG_MAPPING
