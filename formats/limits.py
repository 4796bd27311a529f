"""Bounds that are checked before anything is allocated.  `docs/format.md`, section "Limits",
promises the constants.
"""

from __future__ import annotations

import os

from .errors import LimitError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

MAX_JSON_BYTES = MIB
MAX_JSON_DEPTH = 16
MAX_INTEGER = (1 << 63) - 1
MAX_STRING = 64 * KIB

MAX_RECORDS = 1 << 20
MAX_RECORD_RAW = 256 * MIB
# a record up to this size is bounded absolutely; a larger one also by MAX_RATIO
FREE_RAW = 16 * MIB
# zstd alone can reach about 32,000 on zeros; a writer splits such rows into records of FREE_RAW
MAX_RATIO = 1024
# a frame is longer than its content by at most a 128th of it and 4 KiB
FRAME_SHARE, FRAME_MORE = 128, 4 * KIB
MAX_WINDOW = 8 * MIB
MAX_TENSORS = 4096  # in one safetensors buffer
MAX_TENSOR_RANK = 8

# of all tables that are read at opening, decompressed; more only in a longer file
FREE_TABLES = 16 * MIB
# bytes of them for each byte of the file: rows and snapshots that it holds take more than that
TABLES_RATIO = 64
FREE_LAYERS = 1 << 18  # layers of all records together; more only in a longer file
LAYERS_SHARE = 4  # bytes of the file for each more: a row of a layer takes more than that
TABLES_COST = 4  # bytes of memory for each of them

MAX_LAYERS = 4096
MAX_EXTENT = 1 << 20  # heads, head size, batch, window
MAX_ROWS = 1 << 26  # and token ids, where the sequences of a batch have their own
MAX_BLOCK_BYTES = 256 * MIB  # of a block of rows when it is decoded
MAX_CHAIN = 64  # blocks of rows each of which is predicted from the next
MAX_PROFILE_BYTES = GIB
MAX_LABELS_PER_RECORD = 1 << 20
MAX_SNAPSHOTS = 1 << 20
MAX_COLUMNS = 1 << 22  # snapshots times layers
MAX_NEXT_TOKENS = 1 << 22  # snapshots times sequences that have their own
MAX_SPANS = 1 << 22  # ranges over all views of a file

BUDGET = "TSC_MEMORY_BUDGET"  # the environment variable

# what a writer aims at: small enough to decode a layer alone, large enough to compress
TARGET_RECORD_RAW = 8 * MIB
BLOCK_ROWS = 1024


def is_bytes(asked: str) -> bool:
    """Whether a setting is a number of bytes: digits alone."""
    return asked.isascii() and asked.isdigit() and len(asked) < 20


def memory_budget() -> int:
    """Bytes that one restore may allocate: the machine's physical memory, or `TSC_MEMORY_BUDGET`
    (bytes).
    """
    asked = os.environ.get(BUDGET, "")
    if is_bytes(asked):
        return int(asked)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every platform tells
        return 64 * GIB


def require_memory(needed: int, what: str, hint: str = "") -> None:
    """Raise LimitError if one restore may not allocate so many bytes.

    Args:
        what: takes them, as in "the snapshot takes".
        hint: another way out than a larger budget, as in "fewer --positions".
    """
    budget = memory_budget()
    if needed > budget:
        ways = [hint, f"{BUDGET}=BYTES raises it"]
        raise LimitError(f"{what} {needed} bytes, more than the budget of {budget}", hint="; ".join(filter(None, ways)))
