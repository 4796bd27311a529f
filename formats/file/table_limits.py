"""What a file may say of itself in proportion to its length; a few kB could otherwise describe what fills a memory."""

from __future__ import annotations

from collections.abc import Sequence

from formats.container.records import LAYERED, TABLES, RecordHeader
from formats.errors import CorruptError
from formats.limits import FREE_LAYERS, FREE_TABLES, LAYERS_SHARE, MAX_LAYERS, TABLES_COST, TABLES_RATIO, require_memory


def fault_of(records: Sequence[RecordHeader], size: int) -> str | None:
    """What is out of all proportion in a file of `size` bytes, if anything."""
    tables = sum(header.raw for header in records if header.type in TABLES)
    if tables > FREE_TABLES + TABLES_RATIO * size:
        return f"tables of {tables} bytes in a file of {size}"
    # a record of more layers than a model may have is another fault
    layers = sum(min(header.layer_count, MAX_LAYERS) for header in records if header.type in LAYERED)
    if layers > FREE_LAYERS + size // LAYERS_SHARE:
        return f"records of {layers} layers, all counted, in a file of {size} bytes"
    return None


def require_modest(records: Sequence[RecordHeader], size: int) -> None:
    """Without this, some 30 kB of zstd frames could describe 2^26 rows that nobody stored, or 2^20 records all layers.

    Args:
        size: the length of the file in bytes.
    Raises:
        CorruptError: something is out of proportion.
        LimitError: tables take more than the memory budget.
    """
    fault = fault_of(records, size)
    if fault:
        raise CorruptError(fault)
    cost = TABLES_COST * sum(header.raw for header in records if header.type in TABLES)
    require_memory(cost, "the tables take")
