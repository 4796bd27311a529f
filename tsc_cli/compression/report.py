"""The report of `tsc compress` about the file that it wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from formats.container.strict_json import writable
from tsc_cli.text_format import columns, ratio, size

if TYPE_CHECKING:
    from formats.encode.recipe import Recipe
    from tsc_cli.scoring.fidelity import Fidelity
    from tsc_cli.scoring.published import Published, Tier

    from .compressor import Compressed, Compressor


def facts_of(
    done: Compressed, recipe: Recipe, tier: Tier | None, fidelity: Fidelity | None, as_published: bool
) -> dict[str, Any]:
    """Return the report as JSON (docs/cli.md)."""
    from tsc_cli.scoring.published import verdict

    header = done.header
    published = tier.published if tier is not None else None
    return {
        "tier": header.tier,
        "as_published": as_published,
        "codec": recipe.name,
        "parameters": recipe.parameters(),
        "raw_bytes_trace": header.raw_bytes_trace,
        "raw_bytes_final": header.raw_bytes_final,
        "file_bytes": done.file_bytes,
        "ratio_trace": header.raw_bytes_trace / done.file_bytes,
        "ratio_final": header.raw_bytes_final / done.file_bytes,
        "profile": None
        if recipe.profile is None
        else {"digest": recipe.profile.digest, "bytes": recipe.profile.size, "embedded": recipe.embed_profile},
        "quality": None if fidelity is None else writable(fidelity.to_dict()),
        "verdict": None if fidelity is None else verdict(fidelity.kl_mean),
        "report": published_facts(published) if as_published else None,
    }


def published_facts(published: Published | None) -> dict[str, Any] | None:
    """Return published figures as JSON; None if there are none."""
    names = ("where", "ratio", "kl", "top1", "perplexity_change")
    return None if published is None else {name: getattr(published, name) for name in names}


def summary(
    done: Compressed,
    compressor: Compressor,
    recipe: Recipe,
    tier: Tier | None,
    fidelity: Fidelity | None,
    as_published: bool,
) -> str:
    """Return the report as text."""
    from tsc_cli.scoring.published import verdict

    header, geometry = done.header, compressor.source.trace.geometry
    fp32 = geometry.values(header.raw_bytes_final) * 4 / done.file_bytes
    given = ", ".join(f"{key}={value}" for key, value in recipe.given().items() if key != "profile")
    rows = [
        ["  codec", recipe.name],
        ["  settings", given or "the defaults"],
        ["  file", f"{size(done.file_bytes)} of {size(header.raw_bytes_trace)}"],
        ["  ratio", f"{ratio(header.raw_bytes_trace / done.file_bytes)} of the trace"],
        ["", f"{ratio(fp32)} of the final cache alone in fp32, {ratio(fp32 / 2)} in fp16"],
    ]
    if recipe.profile is not None:
        where = "in the file" if recipe.embed_profile else "not in the file, and needed to read it"
        rows.append(["  profile", f"{recipe.profile.digest[:12]}, {size(recipe.profile.size)}, {where}"])
    if fidelity is None:
        rows.append(["  quality", "not measured"])
    else:
        f = fidelity
        rows.append(["  mean KL", f"{f.kl_mean:.3g} +- {f.kl_mean_se:.1g}: {verdict(f.kl_mean)}"])
        rows.append(["  same top-1", f"{f.top1:.4f} +- {f.top1_se:.1g}, perplexity ratio {f.perplexity_ratio:.4f}"])
    if as_published and tier is not None and tier.published is not None:
        rows.append(["  the report", published_text(tier)])
    return columns(rows)


def published_text(tier: Tier) -> str:
    """Return the published figures of a tier as text."""
    published = tier.published
    assert published is not None
    stated = [f"{published.ratio:g}x"]
    if published.kl is not None:
        stated.append(published.remark or f"KL {published.kl:g}")
    if published.top1 is not None:
        stated.append(f"top-1 {published.top1:g}")
    if published.perplexity_change is not None:
        stated.append(f"perplexity change {published.perplexity_change:g}")
    return f"{', '.join(stated)} ({published.where})"
