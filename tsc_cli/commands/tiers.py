"""`tsc tiers`: what can be promised of a file."""

from __future__ import annotations

from dataclasses import asdict

from ..output import Output, columns
from .options import Json, Quiet


def command(as_json: Json = False, quiet: Quiet = False) -> None:
    """List the tiers: named promises about a file."""
    from formats.tiers import TIERS

    rows = [[tier.name, tier.codec, tier.promise, tier.recipe] for tier in TIERS.values()]
    facts = {"tiers": [asdict(tier) for tier in TIERS.values()]}
    text = columns(rows, ("tier", "codec", "promise", "recipe"))
    Output(as_json, quiet).report("tsc.tiers/1", facts, text, "\n".join(TIERS))
