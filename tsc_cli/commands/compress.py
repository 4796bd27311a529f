"""`tsc compress`: make a captured file small, by a promise or by hand."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError

from ..output import Output, columns, printable, ratio, size
from .options import Device, File, FileModel, Force, Json, Quiet, Seed

if TYPE_CHECKING:
    from formats import Trace
    from formats.compression import Recipe
    from formats.tiers import Tier

    from ..compressing import Compressed, Compressor
    from ..fidelity import Fidelity


def command(
    file: File,
    tier: Annotated[
        str | None,
        typer.Option(
            "--tier", "-t", metavar="NAME", show_default=False,
            help="lossless, 63x ... 1034x, or any Nx: the trace over the file is at least N. See tsc tiers.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="The .tsc file to write; - is stdout. [default: FILE.TIER.tsc]",
            show_default=False,
        ),
    ] = None,
    as_published: Annotated[
        bool,
        typer.Option("--as-published", help="Use the TSC reports' own recipe for the tier, whatever ratio comes out."),
    ] = False,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec", metavar="NAME", help="By hand: lossless, scalar, vq, pq or delta.", show_default=False
        ),
    ] = None,
    evict: Annotated[
        str, typer.Option("--evict", metavar="NAME", help="Evict rows first: h2o or streaming.", show_default=False)
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the codec or the filter; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; show what the tier, or every tier, would give.")
    ] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify", show_default=False,
            help="Measure the KL with the model and record it. [default: if the model is on this machine]",
        ),
    ] = None,
    model: FileModel = None,
    positions: Annotated[int, typer.Option("--positions", min=1, help="Teacher-forced positions.")] = 256,
    seed: Seed = 0,
    device: Device = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Derive the file's identity from its content.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compress a captured file.

    A tier is a promise: raw bytes of the captured trace over bytes of the file, everything counted, and the KL that
    goes with it. The codec and its settings are chosen to be the best that keep it; if none does, nothing is written
    (exit 4).
    """
    from formats import load
    from formats.compression import recipe_of
    from formats.tiers import TIERS, tier_of

    from ..files import check_output

    if (tier is None) == (codec is None) and not (dry_run and codec is None):
        raise UsageError("give either --tier NAME or --codec NAME", hint="tsc tiers lists the tiers")
    if codec is None and (settings or evict):
        raise UsageError("--set and --evict go with --codec")
    if as_published and codec is not None:
        raise UsageError("--as-published goes with --tier")
    promise = tier_of(tier) if tier is not None else None
    if as_published and promise is not None and promise.published is None:
        raise UsageError(f"the reports have no tier {tier}", hint=f"they have {', '.join(TIERS)}")
    by_hand = recipe_of(codec, evict, pairs(settings or [])) if codec is not None else None
    target = output or f"{PurePath(file).with_suffix('')}.{tier or (by_hand.name if by_hand else '')}.tsc"
    if not dry_run:
        check_output(target, force=force)
    trace = load(file)
    out = Output(as_json, quiet)
    compressor = compressor_for(trace, model, device, verify, positions, seed, out)
    if dry_run:
        wanted = [promise] if promise is not None else list(TIERS.values())
        _dry_run(compressor, wanted, as_published, file, out)
        return
    if by_hand is None and promise is not None:
        by_hand = _recipe(compressor, promise, as_published, out)
    assert by_hand is not None
    _write(compressor, by_hand, promise, as_published, file, target, deterministic, force, out)


def pairs(settings: list[str]) -> dict[str, str]:
    """`key=value` texts as a dictionary."""
    found = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--set {text}: KEY=VALUE was expected", hint="such as --set bits=4")
        found[key.strip().replace("-", "_")] = value.strip()
    return found


def compressor_for(
    trace: Trace, model: str | None, device: str, verify: bool | None, positions: int, seed: int, out: Output
) -> Compressor:
    """The trace in memory and, if it is to be measured, the model and the exact logits."""
    from formats.compression import Source

    from ..compressing import Compressor
    from ..files import model_at_hand, model_for

    wanted = verify if verify is not None else model is not None or model_at_hand(trace)
    with out.progress("reading the capture"):
        source = Source(trace)
        source.captured_bytes  # noqa: B018 - read now, under the bar
    if not wanted:
        if verify is None:
            out.note("the model is not on this machine: nothing is measured (-m gives one)")
        return Compressor(source, None)
    from .. import fingerprint
    from ..judging import Judge

    loaded = model_for(trace, model, device, out)
    fingerprint.require_same(trace.fingerprint, fingerprint.of(loaded.model, loaded.tokenizer))
    with out.progress("running the exact cache", positions + 1) as advance:
        judge = Judge(source, loaded.model, positions=positions, seed=seed, progress=advance)
    return Compressor(source, judge)


def _recipe(compressor: Compressor, tier: Tier, as_published: bool, out: Output) -> Recipe:
    from formats.tiers import families

    if as_published and tier.published is not None:
        return tier.published.recipe
    with out.progress(f"choosing a codec for {tier.name}", len(families())) as advance:
        return compressor.choose(tier, advance).winner.recipe


def _write(
    compressor: Compressor, recipe: Recipe, tier: Tier | None, as_published: bool, file: str, target: str,
    deterministic: bool, force: bool, out: Output,
) -> None:  # fmt: skip
    from ..compressing import raw_row_bytes
    from ..files import open_output

    judge = compressor.judge
    fidelity = None
    if judge is not None:
        with out.progress("measuring"):
            fidelity = judge.of_recipe(recipe)
    quality = [] if judge is None else [judge.record(recipe)]
    kept = None if as_published else tier
    with (
        out.progress("writing", raw_row_bytes(compressor.source.trace)) as advance,
        open_output(target, force=force) as sink,
    ):
        done = compressor.write(recipe, sink, tier=kept, quality=quality, deterministic=deterministic, progress=advance)
    facts = facts_of(done, recipe, tier, fidelity, as_published)
    text = summary(done, compressor, recipe, tier, fidelity, as_published)
    if target == "-":
        out.note(text)
        return
    out.report("tsc.compress/1", {"path": target, "source": file, **facts}, f"{printable(target)}\n{text}", target)


def facts_of(
    done: Compressed, recipe: Recipe, tier: Tier | None, fidelity: Fidelity | None, as_published: bool
) -> dict[str, Any]:
    from formats.tiers import verdict

    header = done.header
    published = tier.published if tier is not None else None
    return {
        "tier": header.tier, "as_published": as_published, "codec": recipe.name, "parameters": recipe.parameters(),
        "raw_bytes_trace": header.raw_bytes_trace, "raw_bytes_final": header.raw_bytes_final,
        "file_bytes": done.file_bytes, "ratio_trace": header.raw_bytes_trace / done.file_bytes,
        "ratio_final": header.raw_bytes_final / done.file_bytes,
        "quality": None if fidelity is None else finite(fidelity.to_dict()),
        "verdict": None if fidelity is None else verdict(fidelity.kl_mean),
        "report": None if published is None or not as_published else {
            "where": published.where, "ratio": published.ratio, "kl": published.kl, "top1": published.top1,
            "perplexity_change": published.perplexity_change,
        },
    }  # fmt: skip


def finite(values: dict[str, float | int]) -> dict[str, float | int | None]:
    """JSON has no NaN: a standard error of one position becomes null."""
    return {key: None if isinstance(v, float) and not abs(v) < float("inf") else v for key, v in values.items()}


def summary(
    done: Compressed, compressor: Compressor, recipe: Recipe, tier: Tier | None, fidelity: Fidelity | None,
    as_published: bool,
) -> str:  # fmt: skip
    from formats.tiers import verdict

    header, geometry = done.header, compressor.source.trace.geometry
    fp32 = header.raw_bytes_final / geometry.item_bytes * 4 / done.file_bytes
    given = ", ".join(f"{key}={value}" for key, value in recipe.given().items())
    rows = [
        ["  codec", recipe.name],
        ["  settings", given or "the defaults"],
        ["  file", f"{size(done.file_bytes)} of {size(header.raw_bytes_trace)}"],
        ["  ratio", f"{ratio(header.raw_bytes_trace / done.file_bytes)} of the trace"],
        ["", f"{ratio(fp32)} of the final cache alone in fp32, {ratio(fp32 / 2)} in fp16"],
    ]  # fmt: skip
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
    """What the reports state of a tier."""
    one = tier.published
    assert one is not None
    stated = [f"{one.ratio:g}x"]
    if one.kl is not None:
        stated.append(one.remark or f"KL {one.kl:g}")
    if one.top1 is not None:
        stated.append(f"top-1 {one.top1:g}")
    if one.perplexity_change is not None:
        stated.append(f"perplexity change {one.perplexity_change:g}")
    return f"{', '.join(stated)} ({one.where})"


def _dry_run(compressor: Compressor, tiers: list[Tier], as_published: bool, file: str, out: Output) -> None:
    from formats.errors import TscError
    from formats.tiers import verdict

    raw, _ = compressor.source.captured_bytes
    rows, found = [], []
    for tier in tiers:
        facts: dict[str, Any] = {"tier": tier.name, "met": False, "codec": None, "ratio_trace": None, "kl": None}
        try:
            recipe = _recipe(compressor, tier, as_published, out)
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
        rows.append([
            tier.name, facts["codec"] or "-", "-" if facts["ratio_trace"] is None else ratio(facts["ratio_trace"]),
            "-" if kl is None else f"{kl:.2g}", "-" if top1 is None else f"{top1:.3f}", facts.get("verdict") or "",
            note,
        ])  # fmt: skip
        found.append(facts)
    head = ("tier", "codec", "ratio", "KL", "top-1", "verdict", "the report" if as_published else "")
    facts = {"path": file, "as_published": as_published, "tiers": found}
    headline = "\n".join(one["tier"] for one in found if one["met"])
    out.report("tsc.compress-dry-run/1", facts, columns(rows, head), headline)
