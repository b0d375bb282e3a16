"""The forms of a mask, how one is applied, and how several compose."""

from cramer_peft.masks.compose import ProductMask, RowwiseMask, compose, compose_rowwise
from cramer_peft.masks.form import LayerTensors, MaskForm
from cramer_peft.masks.low_rank import LowRankForm, LowRankMask
from cramer_peft.masks.mask import (
    BatchMask,
    FeatureMask,
    FeatureSpec,
    LayerMask,
    LayerSpec,
    Mask,
    Masks,
    Projection,
    RowColumnMask,
    RowSpec,
    Spec,
    WeightProjection,
)
from cramer_peft.masks.row_values import KEY_WIDTH, QUERY, RowKeys, RowValueMask, compared_width, row_value_mask
from cramer_peft.masks.scale import ScaleForm
from cramer_peft.masks.signed import SignedForm
from cramer_peft.masks.topk import SCHEDULES, TopKForm

__all__ = [
    "FORMS",
    "KEY_WIDTH",
    "QUERY",
    "SCHEDULES",
    "BatchMask",
    "FeatureMask",
    "FeatureSpec",
    "LayerMask",
    "LayerSpec",
    "LayerTensors",
    "LowRankForm",
    "LowRankMask",
    "Mask",
    "MaskForm",
    "Masks",
    "ProductMask",
    "Projection",
    "RowColumnMask",
    "RowKeys",
    "RowSpec",
    "RowValueMask",
    "RowwiseMask",
    "ScaleForm",
    "SignedForm",
    "Spec",
    "TopKForm",
    "WeightProjection",
    "compared_width",
    "compose",
    "compose_rowwise",
    "row_value_mask",
]

FORMS: dict[str, type[MaskForm]] = {form.name: form for form in (LowRankForm, ScaleForm, SignedForm, TopKForm)}
