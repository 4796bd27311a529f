"""Sets of rows as spans: merged and sorted, so that they can be searched."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from .views import Span


def inside(span: Span, spans: Sequence[Span]) -> bool:
    """Whether merged, sorted spans hold all of this one."""
    at = bisect_right(spans, span.first, key=lambda one: one.first) - 1
    return at >= 0 and span.stop <= spans[at].stop


def meets(span: Span, spans: Iterable[Span]) -> bool:
    return any(span.first < one.stop and one.first < span.stop for one in spans)


def without(spans: Iterable[Span], held: Sequence[Span]) -> tuple[Span, ...]:
    """The rows of `spans` that `held`, merged and sorted, does not hold; merged and sorted."""
    result = []
    for span in sorted(spans):
        at = span.first
        for one in held[max(0, bisect_right(held, at, key=lambda run: run.first) - 1) :]:
            if one.first >= span.stop:
                break
            if one.first > at:
                result.append(Span(at, one.first - at))
            at = max(at, one.stop)
        if at < span.stop:
            result.append(Span(at, span.stop - at))
    return union(result)


def union(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The rows of all spans, merged and sorted; spans may overlap."""
    result: list[Span] = []
    for span in sorted(spans):
        if result and span.first <= result[-1].stop:
            result[-1] = Span(result[-1].first, max(result[-1].stop, span.stop) - result[-1].first)
        elif span.rows:
            result.append(span)
    return tuple(result)


def common(sets: Sequence[tuple[Span, ...]]) -> tuple[Span, ...]:
    """The rows that all of some sets hold."""
    if not sets:
        return ()
    whole = union(span for spans in sets for span in spans)
    lacking = [span for spans in sets for span in without(whole, spans)]
    return without(whole, union(lacking))
