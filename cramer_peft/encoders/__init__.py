"""Request encoders turn texts into vectors: one file for each, and the registry by name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cramer_peft.encoders.bars import no_file_bars
from cramer_peft.encoders.encoder import (
    CachedEncoder,
    RequestEncoder,
    check_texts,
    encoder_of_width,
    is_registered,
    make_encoder,
    one_form,
    register_request_encoder,
)
from cramer_peft.encoders.hashing import HashingEncoder
from cramer_peft.encoders.precomputed import PrecomputedEncoder
from cramer_peft.encoders.tuned import TunableEncoder, TunedEncoder, tunable_names, tuned_shapes
from cramer_peft.encoders.wordllama import WordLlamaEncoder
from cramer_peft.errors import EncoderError

if TYPE_CHECKING:
    from cramer_peft.encoders.reader import (
        LONGEST,
        WORD,
        ReaderEnsemble,
        ReaderNetwork,
        Reading,
        RequestReader,
        WordVectors,
        runs,
        word_buckets,
        words_of,
    )
else:

    def __getattr__(name):
        """Import the reader when one of its names is first used, so that ``import cramer_peft`` stays fast."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module("cramer_peft.encoders.reader"), name)


__all__ = [
    "LONGEST",
    "WORD",
    "CachedEncoder",
    "HashingEncoder",
    "PrecomputedEncoder",
    "ReaderEnsemble",
    "ReaderNetwork",
    "Reading",
    "RequestEncoder",
    "RequestReader",
    "TunableEncoder",
    "TunedEncoder",
    "WordLlamaEncoder",
    "WordVectors",
    "check_texts",
    "encoder_of_width",
    "is_registered",
    "make_encoder",
    "no_file_bars",
    "one_form",
    "register_request_encoder",
    "runs",
    "tunable_names",
    "tuned_shapes",
    "word_buckets",
    "words_of",
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
