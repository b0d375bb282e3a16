"""Baselines of request-controlled recommendation behind one interface; see "Baselines" in the documentation."""

from cramer_peft.recsys.baselines.base import BaselineRanker, RankerTask, RequestRanker
from cramer_peft.recsys.baselines.film import ExpertFiLM
from cramer_peft.recsys.baselines.filters import OracleFilter, ParsedFilter
from cramer_peft.recsys.baselines.llm_esr import LLMESR
from cramer_peft.recsys.baselines.lora import RequestLoRA
from cramer_peft.recsys.baselines.masks import MaskRanker, StaticMask, our_masks, paper_gate, paper_gate_with_our_loss
from cramer_peft.recsys.baselines.parsing import RequestParser
from cramer_peft.recsys.baselines.query_seqrec import QuerySeqRec
from cramer_peft.recsys.baselines.rerank import ListwiseReranker
from cramer_peft.recsys.baselines.shuffled import ShuffledRequests
from cramer_peft.recsys.baselines.text_fusion import FusionRanker

__all__ = [
    "LLMESR",
    "BaselineRanker",
    "ExpertFiLM",
    "FusionRanker",
    "ListwiseReranker",
    "MaskRanker",
    "OracleFilter",
    "ParsedFilter",
    "QuerySeqRec",
    "RankerTask",
    "RequestLoRA",
    "RequestParser",
    "RequestRanker",
    "ShuffledRequests",
    "StaticMask",
    "our_masks",
    "paper_gate",
    "paper_gate_with_our_loss",
]
