"""Random edits of encrypted files: of the lock, and of what is stored of records, with the key and without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random

from tests.format_conformance.craft import ENCRYPTED, LABELS, Craft, Piece
from tests.format_conformance.samples_encrypted import OTHER_SALT, sample

Edit = Callable[[Craft, Random], None]


def lock(craft: Craft, random: Random) -> None:
    """The flag inverted, or a byte of the lock written over."""
    what = random.randrange(4)
    if what == 0:
        craft.flags ^= ENCRYPTED
    elif what == 1:
        craft.reserved[32] = random.choice((0, 2, 3, 255))
    elif what == 2:
        craft.reserved[random.choice((33, 34, 35))] = random.choice((0, 1))
    else:
        craft.reserved[random.randrange(36, 60)] = random.randrange(256)


def _all(craft: Craft) -> list[Piece]:
    return [*craft.records, craft.index, craft.end]


def _flip(random: Random) -> Callable[[bytes], bytes]:
    place, bit = random.random(), 1 << random.randrange(8)

    def edit(was: bytes) -> bytes:
        at = int(place * len(was))
        return was[:at] + bytes([was[at] ^ bit]) + was[at + 1 :]

    return edit


def payload(craft: Craft, random: Random) -> None:
    """What is stored of a record: a bit inverted, cut, lengthened; or not encrypted, or END encrypted."""
    piece = random.choice(_all(craft))
    cut, tail = random.choice((1, 15, 16, 17)), random.choice((b"\0", bytes(16)))
    edits = (_flip(random), lambda was: was[:-cut], lambda was: was + tail, lambda was: was[-cut:], lambda was: was)
    edit = random.choice(edits)
    if isinstance(piece.sealed, bytes):
        piece.sealed = edit(piece.sealed)
    elif random.random() < 0.3:
        piece.encrypted = random.random() < 0.3
    else:
        piece.sealed = edit


def exchanged(craft: Craft, random: Random) -> None:
    """What is stored of a record in place of what is of another one, of this file or of an older version of it."""
    one, other = (random.choice(_all(craft)[:-1]) for _ in range(2))
    if random.random() < 0.5:
        one.sealed, other.sealed = other.sealed, one.sealed
    else:
        older = _all(Craft.of(sample("valid", salt=OTHER_SALT)))
        at = _all(craft).index(one)
        one.sealed = older[at if at < len(older) else 0].sealed


def insertion(craft: Craft, random: Random) -> None:
    """A record in the clear that no reader needs, or one twice."""
    piece = Piece(0x90, b"in the clear", encrypted=False) if random.random() < 0.5 else copy.deepcopy(craft[LABELS])
    craft.records.insert(random.randrange(len(craft.records)), piece)


WITHOUT_KEY: dict[Edit, int] = {lock: 3, payload: 6, exchanged: 5, insertion: 1}
WITH_KEY: dict[Edit, int] = {lock: 2, payload: 4, insertion: 1}
