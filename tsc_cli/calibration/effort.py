"""The effort of a calibration: how many tokens, which rank, and where the result is measured."""

from __future__ import annotations

from dataclasses import dataclass

from tsc_cli.huggingface.adapter import ModelAdapter

# tokens of a window: rows are taken of the first, gradients of the others
CONTEXT, CONTINUATION = 1024, 256
OWN_SHARE = 1 / 3  # of the windows, if no texts are given: made of texts that the model writes
OWN = 256  # tokens of a text that the model writes: longer ones take more time a token, for no gain
CURVE = (260, 300, 330, 360, 390, 420, 450)  # finenesses at which a profile is measured


@dataclass(frozen=True)
class Effort:
    """The effort of a calibration.

    Attributes:
        tokens: tokens of the windows' contexts, all together.
        rank: the most coefficients of a basis.
        energy: the share of the variance that is enough for a basis.
        held_out: windows that are kept out of the statistics, for the tables and the curve.
        curve: how many of these windows the curve is measured on.
        finenesses: the finenesses at which it is measured.
        positions: the most tokens of a window over which it is measured.
        fisher_every: one window of so many gives gradients.
        following: the most tokens after a window's context that gradients come from.
        own: tokens of a text that the model writes.
        own_share: the share of windows that are made of such texts.
        seed: the seed of all random choices.
    """

    tokens: int = 96 * CONTEXT
    rank: int = 3072
    energy: float = 1.0
    held_out: int = 6
    curve: int = 3
    finenesses: tuple[int, ...] = CURVE
    positions: int = CONTINUATION
    fisher_every: int = 2
    following: int = CONTINUATION
    own: int = OWN
    own_share: float = OWN_SHARE
    seed: int = 0


# many short texts are written in a third of the time of few long ones: each step of a batch reads
# all weights once
QUICK = Effort(
    tokens=7 * CONTEXT,
    rank=1280,
    held_out=2,
    curve=1,
    finenesses=(300, 360, 420),
    positions=CONTINUATION // 2,
    following=CONTINUATION // 4,
    own=OWN // 16,
    own_share=1 / 9,
)


def window_size(adapter: ModelAdapter) -> tuple[int, int]:
    """Return the tokens of a window's context, and of its continuation, that the model allows."""
    most = adapter.positions.reach or CONTEXT + CONTINUATION
    if most >= CONTEXT + CONTINUATION:
        return CONTEXT, CONTINUATION
    return most * 4 // 5, most - most * 4 // 5
