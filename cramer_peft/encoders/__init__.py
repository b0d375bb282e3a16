"""Request encoders: from texts to vectors."""

from typing import Any

from cramer_peft.encoders.base import CachedEncoder, RequestEncoder, make_encoder, register_request_encoder
from cramer_peft.encoders.hashing import HashingEncoder
from cramer_peft.encoders.precomputed import PrecomputedEncoder
from cramer_peft.encoders.static import WordLlamaEncoder
from cramer_peft.encoders.tuned import TunableEncoder, TunedEncoder, tunable_names
from cramer_peft.errors import EncoderError

__all__ = [
    "CachedEncoder",
    "HashingEncoder",
    "PrecomputedEncoder",
    "RequestEncoder",
    "TunableEncoder",
    "TunedEncoder",
    "WordLlamaEncoder",
    "make_encoder",
    "register_request_encoder",
    "tunable_names",
]


def _transformers(**options: Any) -> RequestEncoder:
    from cramer_peft.encoders.transformers import TransformersEncoder  # importing it takes seconds

    return TransformersEncoder(**options)


def _minilm(**options: Any) -> RequestEncoder:
    from cramer_peft.encoders.transformers import MiniLMEncoder

    return MiniLMEncoder(**options)


def _sentence_transformers(**options: Any) -> RequestEncoder:
    from cramer_peft.encoders.sentence_transformers import SentenceTransformersEncoder

    return SentenceTransformersEncoder(**options)


def _reader(**options: Any) -> RequestEncoder:
    from cramer_peft.encoders.reader import RequestReader

    return RequestReader(**options)


def _precomputed(**options: Any) -> RequestEncoder:
    raise EncoderError(
        "the encoder 'precomputed' holds vectors that are not in the adapter: pass them again, as "
        "encoder=PrecomputedEncoder(vectors)."
    )


register_request_encoder("hashing", HashingEncoder)
register_request_encoder("wordllama", WordLlamaEncoder)
register_request_encoder("transformers", _transformers)
register_request_encoder("all-minilm-l6-v2", _minilm)
register_request_encoder("sentence-transformers", _sentence_transformers)
register_request_encoder("request-reader", _reader)
register_request_encoder("precomputed", _precomputed)
