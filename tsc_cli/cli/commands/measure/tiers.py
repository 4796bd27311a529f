"""`tsc tiers`: what can be promised of a file, and the codecs that files are made with."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns

if TYPE_CHECKING:
    from tsc_cli.scoring.published import Tier, Verdict


@with_groups
def command(
    *,
    codecs: Annotated[
        bool, typer.Option("--codecs", help="List the codecs instead: TSC's own and those of installed packages.")
    ] = False,
    out: Output,
) -> None:
    """List the tiers: named promises about a file."""
    if codecs:
        _report_codecs(out)
        return
    from tsc_cli.scoring.published import TIERS, VERDICTS

    rows = [[tier.name, tier.promise] for tier in TIERS.values()]
    rows.append(["Nx", "any other ratio, at the KL of the next larger one in this list"])
    facts = {
        "tiers": [_facts(tier) for tier in TIERS.values()],
        "verdicts": [_verdict(verdict) for verdict in VERDICTS],
    }
    words = [[verdict.word, f"KL < {verdict.below:g}", verdict.meaning] for verdict in VERDICTS]
    text = f"{columns(rows, ('tier', 'promise'))}\n\n{columns(words, ('verdict', 'mean KL', 'meaning'))}"
    out.report("tsc.tiers/1", facts, text, "\n".join(TIERS))


def _report_codecs(out: Output) -> None:
    from formats.codecs import installed_codecs, registered

    rows, facts = [], []
    for codec in registered():
        kind, settings = codec.kind, asdict(codec.kind.Settings())
        loss = "exact" if kind.exact else "lossy"
        given = " ".join(f"{key}={value if value != '' else '-'}" for key, value in settings.items())
        rows.append([str(kind.id), kind.name, loss, codec.owner, given or "-"])
        facts.append(
            {"id": kind.id, "name": kind.name, "exact": kind.exact, "package": codec.owner, "settings": settings}
        )
    faults = [fault.text for fault in installed_codecs().faults]
    text = "\n".join([columns(rows, ("id", "codec", "rows", "package", "settings")), *faults])
    out.report("tsc.codecs/1", {"codecs": facts, "faults": faults}, text, "\n".join(row[1] for row in rows))


def _facts(tier: Tier) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": tier.name,
        "promise": tier.promise,
        "ratio_trace": tier.ratio,
        "max_kl": tier.max_kl,
    }
    if tier.published is not None:
        published = tier.published
        facts["published"] = {
            "codec": published.recipe.name,
            "parameters": published.recipe.parameters(),
            "where": published.where,
            "ratio": published.ratio,
            "kl": published.kl,
            "top1": published.top1,
            "perplexity_change": published.perplexity_change,
        }
    return facts


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "word": verdict.word,
        "kl_below": verdict.below if math.isfinite(verdict.below) else None,
        "meaning": verdict.meaning,
    }
