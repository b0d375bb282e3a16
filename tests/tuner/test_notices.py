"""What is warned of when an adapter is put on; tests/test_checks_validate.py has the names that match nothing."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from cramer_peft import RequestMaskConfig, inject_request_masks, load_request_masks


@pytest.fixture
def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=20, **sizes)).eval()


def config(**options) -> RequestMaskConfig:
    return RequestMaskConfig(target_modules=["intermediate.dense"], request_dim=4, **options)


def told(recwarn) -> list[str]:
    return [str(warning.message) for warning in recwarn if "PEFT trains copies" in str(warning.message)]


def test_modules_that_peft_adds_by_task_type_are_told_once(bert, recwarn, tmp_path) -> None:
    model = get_peft_model(bert, config(task_type="SEQ_CLS"))
    (message,) = told(recwarn)
    assert "copies of classifier beside the masks, because task_type is 'SEQ_CLS'" in message
    model.save_pretrained(tmp_path)
    restored = model.unload()
    PeftModel.from_pretrained(restored, tmp_path).unload()
    load_request_masks(restored, tmp_path).unload()
    assert told(recwarn) == [message]


@pytest.mark.parametrize(
    ("inject", "options"),
    [
        (get_peft_model, {}),
        (get_peft_model, {"task_type": "FEATURE_EXTRACTION"}),
        (get_peft_model, {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}),
        (inject_request_masks, {"task_type": "SEQ_CLS"}),
        (inject_request_masks, {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}),
    ],
)
def test_nothing_is_told_of_what_was_asked_for(bert, inject, options, recwarn) -> None:
    inject(bert, config(**options))
    assert told(recwarn) == []
