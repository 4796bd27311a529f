"""Files whose checksums are right and whose rows of codec klt lie."""

from __future__ import annotations

import copy
from collections.abc import Callable

from tests.format_conformance.craft import MODEL, Craft, Piece
from tests.format_conformance.liars import liar
from tests.format_conformance.liars_codecs import other_dtype, with_tensors
from tests.format_conformance.liars_profile import ONE, TWO, reprofiled

UNFIT, NO_WRITER = "do not fit the profile", "a klt layout"


def coded(name: str, message: str, edit: Callable[[Piece], object], *, opens: bool = True, sample: str = ONE) -> None:
    liar(f"klt: {name}", message, lambda craft: edit(craft.rows(0)), sample=sample, opens=opens)


def layout(*numbers: int) -> Callable[[Piece], object]:
    return lambda piece: piece.set_integers("layout", list(numbers))


def changed(name: str, edit: Callable[[list[int]], list[int]]) -> Callable[[Piece], object]:
    return lambda piece: piece.set_integers(name, edit(piece.integers(name)))


for name in ("layout", "words", "apart"):
    coded(f"without {name}", "were expected", with_tensors(lambda found, name=name: found.pop(name)), opens=False)  # type: ignore[misc]
    coded(f"{name} of another dtype", f"tensor '{name}' is", with_tensors(other_dtype(name)), opens=False)
    coded(
        f"{name} of two dimensions",
        f"tensor '{name}' is",
        with_tensors(
            lambda found, name=name: found.update(  # type: ignore[misc]
                {name: (found[name][0], [1, *found[name][1]], found[name][2])}
            )
        ),
        opens=False,
    )
coded("another tensor", "were expected", with_tensors(lambda found: found.update(more=("U8", [0], b""))), opens=False)
for what, numbers in {
    "empty": (),
    "too short": (100, 1, 8),
    "of 257 groups": (100, 257, *[0] * 514),
    "of a million numbers": (100, 1, 8, *[0] * 2**20),
    "without its groups": (100, 2, 8, 1),
    "of no groups": (0,) * 4,
    "with a number more": (100, 1, 8, 1, 0),
    "with fineness -1,025": (-1_025, 1, 8, 1),
    "with fineness 2,049": (2_049, 1, 8, 1),
    "with rest 2": (100, 1, 8, 2),
    "with rest -1": (100, 1, 8, -1),
    "with groups -1": (100, -1, 8, 1),
    "with rank -1": (100, 1, -1, 1),
    "with rank 16,385": (100, 1, 16_385, 1),
    "with rank 2^31 - 1": (100, 1, 2**31 - 1, 1),
    "with a rest in between": (100, 2, 8, 1, 8, 1),
}.items():
    coded(f"layout {what}", NO_WRITER, layout(*numbers), opens=False)
coded("rank one beyond the profile's", UNFIT, layout(100, 1, 9, 1))
coded("rank 16,384", UNFIT, layout(100, 1, 16_384, 1))
coded("a group more", UNFIT, layout(100, 2, 8, 0, 1, 1))
coded("a group less", UNFIT, layout(60, 1, 10, 1), sample=TWO)
coded("groups the other way round", UNFIT, layout(60, 2, 6, 10, 1, 1), sample=TWO)
coded("a word that nothing takes", "left over", changed("words", lambda old: [7, *old]))
coded("words twice", "left over", changed("words", lambda old: old * 2))
coded("words that end in zero", "end in zero", changed("words", lambda old: [*old, 0]))
coded("nothing but a zero", "end in zero", changed("words", lambda _: [0]))
coded("one apart too few", "too few integers", changed("apart", lambda old: old[:-1]))
coded("none apart", "too few integers", changed("apart", lambda _: []))
coded("one apart too many", "are left over", changed("apart", lambda old: [*old, 0]))


def parts(craft: Craft) -> None:
    """The record as one of keys and one of values."""
    second = craft.insert(copy.deepcopy(craft.rows(0)))
    craft.rows(0).part, second.part = 1, 2


liar("klt: a record for each part", "does not write records of part 1", parts, sample=ONE)


def other_heads(craft: Craft) -> None:
    """Four heads of two values where the profile has two of four."""
    craft[MODEL].edit_json(lambda model: model["layers"][0].update(heads=4, key_size=2, value_size=2))


liar("klt: other heads than the profile's", UNFIT, other_heads, sample=ONE, opens=True)


def without_end(craft: Craft) -> None:
    """All symbols 0, which take no words: integers of -127 steps of 2^64 over scales of 2^-100."""
    reprofiled(craft, lambda piece: piece.set_integers("0.scale", [-3_200] * 8))
    layout(-1_024, 1, 8, 1)(craft.rows(0))
    for name in ("words", "apart"):
        craft.rows(0).set_integers(name, [])


liar("klt: coefficients beyond float32", "not finite", without_end, sample=ONE, opens=True)
