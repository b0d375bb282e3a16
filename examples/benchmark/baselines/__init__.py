"""Baselines of request-controlled recommendation behind one interface; see docs/baselines.md."""

from benchmark.baselines.film import ExpertFiLM
from benchmark.baselines.filters import OracleFilter, ParsedFilter
from benchmark.baselines.llm_esr import LLMESR
from benchmark.baselines.lora import RequestLoRA
from benchmark.baselines.masks import (
    MaskRanker,
    StaticMask,
    cramer,
    our_masks,
    paper_gate,
    paper_gate_with_our_loss,
)
from benchmark.baselines.parsing import RequestParser
from benchmark.baselines.query_seqrec import QuerySeqRec
from benchmark.baselines.ranker import BaselineRanker, RankerTask, RequestRanker
from benchmark.baselines.rerank import ListwiseReranker
from benchmark.baselines.shuffled import ShuffledRequests
from benchmark.baselines.text_fusion import FusionRanker

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
    "cramer",
    "our_masks",
    "paper_gate",
    "paper_gate_with_our_loss",
]
