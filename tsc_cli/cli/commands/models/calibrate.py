"""`tsc calibrate`: learn a model's caches, once, so that files become several times smaller."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formats.errors import UsageError
from tsc_cli.cli.option_groups import ModelToLoad, with_groups
from tsc_cli.cli.options import MOST_TOKENS, Dtype, Overwrite, Seed, number
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable, size

if TYPE_CHECKING:
    from formats.codecs.klt.profile import Profile


@dataclass(frozen=True)
class Float32Model(ModelToLoad):
    """As `ModelToLoad`, in float32 unless asked otherwise."""

    dtype: Dtype = "float32"


@with_groups
def command(
    *,
    model: Float32Model,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            show_default=False,
            help="A text like those that will be captured; may be repeated. [default: Python's documentation and "
            "library, and text that the model writes]",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PROFILE",
            show_default=False,
            help="Write the profile to this file, too; it is kept in the cache folder in any case.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: fewer tokens and a lower rank.")] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            min=1024,
            max=MOST_TOKENS,
            show_default=False,
            help="Tokens to calibrate on. [default: 98304, quick 7168]",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            min=1,
            max=16384,
            show_default=False,
            help="Coefficients of the joint transform, at most. [default: 3072, quick 1280]",
        ),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            min=0.5,
            max=1.0,
            callback=number,
            show_default=False,
            help="Keep no more coefficients than hold this share of the weighted energy.",
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Make the profile of a model, for codec klt.

    It measures how the model's caches vary and what their errors cost (by backpropagation through
    the cache), and then the quality of the profile. You can stop it at any time; the next call with
    the same options continues. The profile is kept in the user's cache folder, where compress finds
    it. Files made with it name it, and need it to be read.
    """
    from formats.codecs.klt import profile_store
    from tsc_cli.calibration.calibrate import calibrate
    from tsc_cli.calibration.effort import QUICK, Effort
    from tsc_cli.cli.files import check_output, open_output
    from tsc_cli.huggingface.models.loading import check_dtype
    from tsc_cli.huggingface.text.tokenizing import encode
    from tsc_cli.text_input import read_text

    if rank is not None and energy is not None and energy < 1.0:
        raise UsageError("give either --rank or --energy")
    if output == "-":
        raise UsageError("a profile is written to a file", hint="-o PROFILE.safetensors")
    if output is not None:
        check_output(output, overwrite=overwrite)
    check_dtype(model.dtype)
    effort = QUICK if quick else Effort()
    effort = replace(
        effort, seed=seed, tokens=tokens or effort.tokens, rank=rank or effort.rank, energy=energy or effort.energy
    )
    contents = [read_text(name, out.note) for name in text or []]
    loaded = model.load(out)
    profile = calibrate(
        loaded.adapter,
        loaded.tokenizer,
        name=loaded.name,
        effort=effort,
        stage=out.progress,
        say=out.note,
        texts=[encode(content, loaded.tokenizer) for content in contents] if contents else None,
    )
    path = profile_store.path_of(profile)
    if output is not None:
        with open_output(output, overwrite=overwrite) as file:
            file.write(profile.data)
    shown = output or os.fspath(path)
    out.report("tsc.profile/1", facts(profile, shown), f"{printable(shown)}\n{described(profile)}", shown)


def facts(profile: Profile, path: str) -> dict[str, Any]:
    """A profile, for a script."""
    return {
        "path": path,
        "digest": profile.digest,
        "model": profile.name,
        "bytes": profile.size,
        "info": profile.info,
        "groups": [
            {
                "first_layer": s.first_layer,
                "layer_count": s.layer_count,
                "values_a_token": s.width,
                "rank": s.rank,
                "rotary": any(rotary.channels for rotary in s.rotary),
            }
            for s in profile.shapes
        ],
        "fingerprint": profile.fingerprint,
        "curve": profile.curve,
    }


def described(profile: Profile) -> str:
    """A profile, for a person."""
    ranks = ", ".join(f"{s.rank} of {s.width}" for s in profile.shapes[:4]) + (", ..." * (len(profile.shapes) > 4))
    rows = [
        ["  model", profile.name],
        ["  digest", profile.digest[:12]],
        ["  size", f"{size(profile.size)}, once a model"],
        ["  from", f"{profile.info.get('tokens')} tokens, texts: {profile.info.get('texts')}"],
        ["  rank", ranks],
    ]
    points = [
        [f"{32 / p['bits']:.0f}x", f"{p['bits']:.3f}", f"{p['kl']:.2g}", f"{p['top1']:.3f}"]
        for p in profile.curve
        if {"bits", "kl", "top1"} <= p.keys() and p["bits"] > 0
    ]
    if not points:
        return columns(rows)
    return f"{columns(rows)}\n\n{columns(points, ('of fp32', 'bits/value', 'KL', 'top-1'))}"
