"""`tsc compress`: make a captured file small, by a promise or by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import EncryptionOptions, ModelOfFile, with_groups
from tsc_cli.cli.options import MOST_KL, Beyond, File, Overwrite, Positions, Seed, number
from tsc_cli.cli.output import Output
from tsc_cli.cli.targets import Target
from tsc_cli.compression.report import facts_of, summary
from tsc_cli.text_format import printable

from .compress_choice import recipe_for, report_tiers

if TYPE_CHECKING:
    from formats import Trace
    from formats.codecs.klt.profile import Profile
    from formats.encode.recipe import Recipe
    from tsc_cli.compression.compressor import Compressor


@with_groups
def command(
    *,
    file: File,
    tier: Annotated[
        str | None,
        typer.Option(
            "--tier",
            "-t",
            metavar="NAME",
            show_default=False,
            help="lossless, 63x ... 1034x, or any Nx: the trace over the file is at least N. See tsc tiers.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="The .tsc file to write; - is stdout. [default: FILE.TIER.tsc]",
            show_default=False,
        ),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            "--quality",
            metavar="NAME",
            show_default=False,
            help="The smallest file of this quality: near-exact, high, balanced or small (mean KL 0.001, 0.01, 0.05, "
            "0.15). [default: high]",
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            metavar="KL",
            min=0.0,
            max=MOST_KL,
            callback=number,
            show_default=False,
            help="The smallest file whose mean KL in nats, measured on this cache, is at most this.",
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(
            "--min-top1",
            metavar="SHARE",
            min=0.0,
            max=1.0,
            callback=number,
            show_default=False,
            help="The smallest file with at least this share of equal top-1 tokens.",
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            metavar="BITS",
            min=0.001,
            max=128,
            callback=number,
            show_default=False,
            help="The best file of at most this many bits a stored value, everything counted.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="PROFILE",
            show_default=False,
            help="Digest or file of the profile for codec klt. [default: the one that fits the model]",
        ),
    ] = None,
    embed_profile: Annotated[
        bool, typer.Option("--embed-profile", help="Store the profile in the file, so that it can be read anywhere.")
    ] = False,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Use the published recipe of the tier, whatever ratio results.")
    ] = False,
    codec: Annotated[
        str | None,
        typer.Option(
            "--codec", metavar="NAME", help="The codec by hand; tsc tiers --codecs lists them.", show_default=False
        ),
    ] = None,
    evict: Annotated[
        str, typer.Option("--evict", metavar="NAME", help="Evict rows first: h2o or streaming.", show_default=False)
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the codec or the filter; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what the tier, or every tier, would give.")
    ] = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            show_default=False,
            help="Measure the KL with the model and record it. [default: if the model is on this machine]",
        ),
    ] = None,
    model: ModelOfFile,
    positions: Positions = 256,
    seed: Seed = 0,
    beyond: Beyond = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Derive the file's identity from its content.")
    ] = False,
    encryption: EncryptionOptions,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Compress a captured file.

    Ask for a quality to get the smallest file that keeps it, or for a size to get the best one. A
    tier promises a size (raw bytes of the captured trace over bytes of the file, everything
    counted) and a KL. If no file can keep the promise, no file is written (exit 4). A profile of
    the model (tsc calibrate) makes files several times smaller.
    """
    from formats import load
    from formats.codecs.klt import profile_store
    from formats.encode.recipe import recipe_of
    from tsc_cli.cli.files import check_output
    from tsc_cli.cli.keys import Keys
    from tsc_cli.scoring.published import TIERS

    target = Target.of(tier, quality, max_kl, min_top1, bits, codec)
    if codec is None and (settings or evict):
        raise UsageError("--set and --evict go with --codec")
    if as_published and tier is None and not (dry_run and target.default):
        raise UsageError("--as-published needs --tier")
    if as_published and target.tier is not None and target.tier.published is None:
        raise UsageError(f"no recipe was published for tier {tier}", hint=f"published: {', '.join(TIERS)}")
    if dry_run and not target.default and target.tier is None and codec is None:
        raise UsageError("--dry-run shows tiers", hint="without --quality, --max-kl, --min-top1 and --bits")
    path = output or f"{PurePath(file).with_suffix('')}.{codec or target.name}.tsc"
    by_hand = recipe_of(codec, evict, pairs(settings or [])) if codec is not None else None
    if not dry_run:
        check_output(path, overwrite=overwrite, read=(encryption.key_file,))
    keys = Keys(encryption.key_file)
    trace = load(file, keys if encryption.encrypt else keys.source)
    if encryption.encrypt and trace.secret is None:
        trace.secret = keys.new()
    chosen = _profile(profile, trace)
    if by_hand is not None and by_hand.needs_profile:
        if chosen is None and "profile" in by_hand.settings:
            chosen = profile_store.resolve(by_hand.settings["profile"])
        if chosen is None:
            raise UsageError(f"codec {codec} needs a profile of the model", hint="tsc calibrate makes one")
        by_hand = replace(by_hand, settings={"profile": chosen.digest, **by_hand.settings}, embed_profile=embed_profile)
    compressor = compressor_for(
        trace, model, verify, positions, seed, out, chosen, embed_profile=embed_profile, beyond=beyond
    )
    if profile is not None and codec is None and compressor.klt is None:
        raise UsageError(f"profile {profile} does not fit the file's layers", hint="tsc profiles lists others")
    if dry_run:
        tiers = [target.tier] if target.tier is not None else list(TIERS.values())
        report_tiers(compressor, tiers, as_published, file, out)
        return
    if chosen is None and codec is None and not as_published:
        out.note("there is no profile of this model; with one (tsc calibrate) files are several times smaller")
    recipe = by_hand or recipe_for(compressor, target, as_published, out)
    _write(compressor, recipe, target, as_published, file, path, deterministic, overwrite, out)


def _profile(asked: str | None, trace: Trace) -> Profile | None:
    """The profile that is asked for, or the one that fits the model of a file."""
    from formats.codecs.klt import profile_store

    if asked is None:
        return profile_store.for_model(trace.fingerprint)
    if PurePath(asked).suffix or "/" in asked:
        return profile_store.read(asked)
    return profile_store.resolve(asked)


def pairs(settings: list[str]) -> dict[str, str]:
    """`key=value` texts as a dictionary."""
    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--set {text}: KEY=VALUE was expected", hint="such as --set bits=4")
        values[key.strip().replace("-", "_")] = value.strip()
    return values


def compressor_for(
    trace: Trace,
    model: ModelOfFile,
    verify: bool | None,
    positions: int,
    seed: int,
    out: Output,
    profile: Profile | None,
    *,
    embed_profile: bool = False,
    beyond: bool = False,
) -> Compressor:
    """The trace in memory and, if it is to be measured, the model and the exact logits."""
    from formats.encode.source import Source
    from tsc_cli.compression.compressor import Compressor
    from tsc_cli.huggingface.models.loading import check_trust
    from tsc_cli.huggingface.models.of_trace import model_at_hand

    check_trust(model.model, model.trust_remote_code)
    measure = verify if verify is not None else model.model is not None or model_at_hand(trace)
    with out.progress("reading the capture"):
        source = Source(trace)
        source.captured_bytes  # noqa: B018 - read now, under the bar
    if not measure:
        if verify is None:
            out.note("the model is not on this machine, so the KL is not measured (-m gives one)")
        return Compressor(source, None, profile=profile, embed_profile=embed_profile)
    from tsc_cli.huggingface.fingerprint import fingerprint
    from tsc_cli.scoring.scorer import Judge

    loaded = model.load(trace, out)
    fingerprint.require_same(trace.fingerprint, fingerprint.of(loaded.adapter, loaded.tokenizer))
    with out.progress("running the exact cache", positions + 1) as advance:
        judge = Judge(source, loaded.adapter, positions=positions, seed=seed, progress=advance, beyond=beyond)
    return Compressor(source, judge, profile=profile, embed_profile=embed_profile)


def _write(
    compressor: Compressor,
    recipe: Recipe,
    target: Target,
    as_published: bool,
    file: str,
    path: str,
    deterministic: bool,
    overwrite: bool,
    out: Output,
) -> None:
    from tsc_cli.cli.files import open_output
    from tsc_cli.compression.compressor import raw_row_bytes

    judge = compressor.judge
    fidelity = None
    if judge is not None:
        with out.progress("measuring"):
            fidelity = judge.of_recipe(recipe)
    quality = [] if judge is None else [judge.record(recipe)]
    tier = target.tier
    promise = None if as_published else target.promise
    with (
        out.progress("writing", raw_row_bytes(compressor.source.trace)) as advance,
        open_output(path, overwrite=overwrite) as sink,
    ):
        done = compressor.write(
            recipe, sink, tier=promise, quality=quality, deterministic=deterministic, progress=advance
        )
    facts = facts_of(done, recipe, tier, fidelity, as_published)
    text = summary(done, compressor, recipe, tier, fidelity, as_published)
    if path == "-":
        out.note(text)
        return
    out.report("tsc.compress/1", {"path": path, "source": file, **facts}, f"{printable(path)}\n{text}", path)
