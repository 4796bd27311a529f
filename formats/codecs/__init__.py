"""Codecs: rows to bytes and back.  `base` defines a codec, `registry` lists all of them."""

from .base import Bases, BlockContext, Codec, Fetch, Prediction
from .registry import (
    CODECS,
    codec_by_id,
    codec_by_name,
    codec_class,
    codec_name,
    installed_codecs,
    is_exact,
    registered,
)

__all__ = [
    "CODECS",
    "Bases",
    "BlockContext",
    "Codec",
    "Fetch",
    "Prediction",
    "codec_by_id",
    "codec_by_name",
    "codec_class",
    "codec_name",
    "installed_codecs",
    "is_exact",
    "registered",
]
