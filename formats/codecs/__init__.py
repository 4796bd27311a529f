"""Codecs: rows to bytes and back.  `registry` knows all of them, `base` says what one is."""

from .base import Bases, Codec, Fetch, Prediction, Surroundings
from .registry import CODECS, codec_by_id, codec_by_name, codec_class, codec_name, is_exact, others, registered

__all__ = [
    "CODECS",
    "Bases",
    "Codec",
    "Fetch",
    "Prediction",
    "Surroundings",
    "codec_by_id",
    "codec_by_name",
    "codec_class",
    "codec_name",
    "is_exact",
    "others",
    "registered",
]
