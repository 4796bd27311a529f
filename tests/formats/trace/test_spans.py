"""Sets of rows as spans, against sets of numbers."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from formats.trace.spans import common, inside, meets, union, without
from formats.trace.views import Span

ROWS = 24
SPANS = st.builds(Span, st.integers(0, ROWS), st.integers(0, 8))  # empty ones, too
LISTS = st.lists(SPANS, max_size=6)


def rows(spans: Iterable[Span]) -> set[int]:
    return {row for span in spans for row in range(span.first, span.stop)}


def merged(numbers: Iterable[int]) -> tuple[Span, ...]:
    """The fewest spans that hold these rows, ascending."""
    spans: list[Span] = []
    for row in sorted(numbers):
        if spans and spans[-1].stop == row:
            spans[-1] = Span(spans[-1].first, spans[-1].rows + 1)
        else:
            spans.append(Span(row, 1))
    return tuple(spans)


@given(LISTS)
def test_a_union_holds_the_rows_of_all_and_is_merged(spans: list[Span]) -> None:
    assert union(spans) == merged(rows(spans))


@given(LISTS, LISTS)
def test_without_leaves_the_rows_that_are_not_held(spans: list[Span], held: list[Span]) -> None:
    assert without(spans, union(held)) == merged(rows(spans) - rows(held))


@given(st.lists(LISTS.map(union), max_size=4))
def test_common_rows_are_in_every_set(sets: list[tuple[Span, ...]]) -> None:
    shared = set.intersection(*map(rows, sets)) if sets else set()
    assert common(sets) == merged(shared)


@given(SPANS.filter(lambda span: span.rows), LISTS)
def test_inside_means_that_one_run_holds_all_rows(span: Span, spans: list[Span]) -> None:
    assert inside(span, union(spans)) == (rows([span]) <= rows(spans))


@given(SPANS.filter(lambda span: span.rows), st.lists(SPANS.filter(lambda span: span.rows), max_size=6))
def test_meets_means_that_they_share_a_row(span: Span, spans: list[Span]) -> None:
    assert meets(span, spans) == bool(rows([span]) & rows(spans))
