"""What `tsc compress` would write: the recipe of a target, and a table of what tiers give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tsc_cli.cli.output import Output
from tsc_cli.cli.targets import Target
from tsc_cli.compression.report import published_text
from tsc_cli.text_format import columns, ratio

if TYPE_CHECKING:
    from formats.encode.recipe import Recipe
    from tsc_cli.compression.compressor import Compressor
    from tsc_cli.scoring.published import Tier


def recipe_for(compressor: Compressor, target: Target, as_published: bool, out: Output) -> Recipe:
    """Find the recipe of a target, with progress.  Raises PromiseError if there is none."""
    from tsc_cli.scoring.published import families

    tier = target.tier
    if as_published and tier is not None and tier.published is not None:
        return tier.published.recipe
    if target.goal is not None:
        with out.progress(f"finding the smallest file with {target.goal.promise}") as advance:
            return compressor.smallest(target.goal, advance)
    with out.progress(f"choosing a codec for {target.name}", len(families(compressor.klt))) as advance:
        if tier is None:
            assert target.bits is not None
            return compressor.at_bits(target.bits)
        return compressor.choose(tier, advance).winner.recipe


def report_tiers(compressor: Compressor, tiers: list[Tier], as_published: bool, file: str, out: Output) -> None:
    """Report what each of the tiers would give, and write nothing."""
    from formats.errors import TscError
    from tsc_cli.scoring.published import verdict

    raw, _ = compressor.source.captured_bytes
    rows, tier_facts = [], []
    for tier in tiers:
        facts: dict[str, Any] = {"tier": tier.name, "met": False, "codec": None, "ratio_trace": None, "kl": None}
        try:
            recipe = recipe_for(compressor, Target(tier.name, tier), as_published, out)
            fidelity = compressor.judge.of_recipe(recipe) if compressor.judge is not None else None
            gained = raw / compressor.size(recipe)
            facts |= {"met": tier.ratio is None or gained >= tier.ratio, "codec": recipe.name, "ratio_trace": gained}
            facts |= {"parameters": recipe.parameters()}
            if fidelity is not None:
                facts |= {"kl": fidelity.kl_mean, "top1": fidelity.top1, "verdict": verdict(fidelity.kl_mean)}
            note = published_text(tier) if as_published else ""
        except TscError as error:
            facts["reason"] = note = error.message
        kl, top1 = facts.get("kl"), facts.get("top1")
        rows.append(
            [
                tier.name,
                facts["codec"] or "-",
                "-" if facts["ratio_trace"] is None else ratio(facts["ratio_trace"]),
                "-" if kl is None else f"{kl:.2g}",
                "-" if top1 is None else f"{top1:.3f}",
                facts.get("verdict") or "",
                note,
            ]
        )
        tier_facts.append(facts)
    head = ("tier", "codec", "ratio", "KL", "top-1", "verdict", "the report" if as_published else "")
    facts = {"path": file, "as_published": as_published, "tiers": tier_facts}
    headline = "\n".join(tier_fact["tier"] for tier_fact in tier_facts if tier_fact["met"])
    out.report("tsc.compress-dry-run/1", facts, columns(rows, head), headline)
