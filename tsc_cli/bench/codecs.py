"""Benchmarks: codecs x prompts on one captured set, with standard errors, as one JSON document.

Every prompt is a window of a text: its first tokens are captured with some decode steps, and the tokens that follow
them in the text are what restored caches are scored on.  Ratios are of the whole trace, quality is that of the first
snapshot: the one that is followed by real text.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from formats import Trace
from formats.codecs.klt import profile_store
from formats.container.safetensors_buffer import dtype_name
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import PromiseError, UsageError
from formats.file.blocks import FileBlock
from formats.version import VERSION
from tsc_cli.compression.candidates import Sizer
from tsc_cli.compression.compressor import Compressor
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.progress import Progress
from tsc_cli.scoring.fidelity import Fidelity
from tsc_cli.scoring.published import TABLE_1, TABLE_2_THRESHOLDS, TIERS, Published, Tier, verdict
from tsc_cli.scoring.scorer import Judge, scratch_file
from tsc_cli.session.capture import capture
from tsc_cli.session.decode_loop import CaptureOptions

from . import ladder
from .ladder import Row

if TYPE_CHECKING:
    from formats.codecs.klt.profile import Profile
    from tsc_cli.huggingface.models.loading import Loaded

    from .peers import Peer

SCHEMA = "tsc.bench/1"
PACKAGES = ("torch", "transformers", "zstandard", "safetensors", "numpy")


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        prompts: windows, spread evenly over the texts.
        context: tokens that are captured; `steps` decode steps follow.
        positions: teacher-forced positions of the text behind the context.
        allow_beyond_positions: go on beyond the positions that the model was made for.
    """

    prompts: int = 4
    context: int = 1024
    steps: int = 64
    positions: int = 256
    seed: int = 0
    allow_beyond_positions: bool = False


def _published(label: str, one: Published) -> Row:
    return Row(label, "published", one.recipe, None, one)


def _threshold_rows() -> list[Row]:
    rows = []
    for threshold in TABLE_2_THRESHOLDS:
        known = TIERS["125x"].published if threshold == 0.05 else None
        recipe = Recipe("vq", {"block": 8, "threshold": threshold})
        rows.append(Row(f"threshold {threshold:.3f}", "published", recipe, None, known))
    return rows


def _hierarchy_rows() -> list[Row]:
    rows = [_published(tier.name, tier.published) for tier in TIERS.values() if tier.published is not None]
    return rows + [Row(tier.name, "promised", tier=tier) for tier in TIERS.values()]


SUITES: dict[str, Callable[[], list[Row]]] = {
    "block-size": lambda: [_published(label, one) for label, one in TABLE_1.items()],
    "threshold": _threshold_rows,
    "hierarchy": _hierarchy_rows,
    "ladder": ladder.rows,
}


@dataclass
class Prompt:
    """One captured window and what judges its restored caches."""

    source: Source
    judge: Judge
    sizer: Sizer
    profile: Profile | None = None


@dataclass
class Measured:
    """One row on one prompt."""

    recipe: Recipe | None
    file_bytes: int
    encode_seconds: float
    fidelity: Fidelity
    coded_share: float | None


@dataclass
class Bench:
    """A captured set.

    Args:
        texts: the token ids of the texts, cut into windows here.
    """

    loaded: Loaded
    protocol: Protocol
    prompts: list[Prompt] = field(default_factory=list)

    def capture(self, texts: Sequence[Sequence[int]], progress: Progress, *, attention: bool = True) -> None:
        """Capture the windows.  Raises UsageError if the texts are too short for them."""
        p = self.protocol
        beyond = p.allow_beyond_positions
        options = CaptureOptions(steps=p.steps, seed=p.seed, attention=attention, allow_beyond_positions=beyond)
        for tokens in windows(texts, p.prompts, p.context + p.positions + 1):
            trace = capture(
                self.loaded.adapter,
                tokens[: p.context],
                tokenizer=self.loaded.tokenizer,
                reference=tokens[p.context :],
                options=options,
            )
            source = Source(trace)
            judge = Judge(source, self.loaded.adapter, snapshot=0, positions=p.positions, seed=p.seed, beyond=beyond)
            profile = profile_store.for_model(trace.fingerprint)
            self.prompts.append(Prompt(source, judge, Sizer(source, judge.device), profile))
            progress(1)

    def run(self, rows: Iterable[Row], progress: Progress) -> list[dict[str, Any]]:
        """Measure every row on every prompt."""
        found = []
        for row in rows:
            measured: list[Measured] = []
            failures: list[str] = []
            for prompt in self.prompts:
                try:
                    measured.append(_measure(prompt, row))
                except PromiseError as error:
                    failures.append(error.message)
                progress(1)
            found.append(_summary(row, measured, failures, self.prompts))
        return found


def windows(texts: Sequence[Sequence[int]], count: int, size: int) -> list[list[int]]:
    """`count` windows of `size` tokens, taken from the texts in turn, spread evenly over each."""
    found: list[list[int]] = []
    for number, text in enumerate(texts):
        share = len(range(number, count, len(texts)))
        last = len(text) - size
        if share and (last < 0 or (share > 1 and last // (share - 1) < size)):
            raise UsageError(
                f"text {number + 1} has {len(text)} tokens, too few for {share} windows of {size}",
                hint="fewer --prompts, a smaller --context, or a longer text",
            )
        found += [list(text[last * at // max(share - 1, 1) :][:size]) for at in range(share)]
    return found


def _measure(prompt: Prompt, row: Row) -> Measured:
    if row.peer is not None:
        return _measure_peer(prompt, row.peer)
    recipe = row.recipe
    if recipe is None:
        compressor = Compressor(prompt.source, prompt.judge, prompt.sizer, prompt.profile)
        recipe = compressor.choose(_promise(row, prompt)).winner.recipe
    started = time.perf_counter()
    with scratch_file(prompt.source, recipe, prompt.judge.device) as trace:
        seconds = time.perf_counter() - started
        size = trace.stored_bytes or 0
        fidelity = prompt.judge.of_trace(trace)
        share = coded_share(trace)
    return Measured(recipe, size, seconds, fidelity, share)


def _promise(row: Row, prompt: Prompt) -> Tier:
    """A row's tier for the trace as it was captured: rungs of the ladder are ratios of one cache in float32."""
    assert row.tier is not None
    if row.kind != "klt" or row.tier.ratio is None:
        return row.tier
    raw, raw_final = prompt.source.captured_bytes
    in_float32 = raw_final * 4 / prompt.source.trace.geometry.item_bytes
    return replace(row.tier, ratio=row.tier.ratio * raw / in_float32)


def _measure_peer(prompt: Prompt, peer: Peer) -> Measured:
    judge = prompt.judge
    started = time.perf_counter()
    found = peer.run([(keys, values) for keys, values in judge.exact_rows()], judge.config)
    seconds = time.perf_counter() - started
    return Measured(None, found.stored_bytes, seconds, judge.of_rows(found.rows), None)


def coded_share(trace: Trace) -> float | None:
    """The share of vq or pq blocks that are coded, the rest being kept in 16 bits; None without such blocks."""
    blocks = exact = 0
    for block in trace.blocks:
        assert isinstance(block, FileBlock)
        codec, tensors, _ = block.tensors()
        of_record, kept = codec.coded_blocks(tensors)
        blocks, exact = blocks + of_record, exact + kept
    return 1 - exact / blocks if blocks else None


def _summary(
    row: Row, measured: Sequence[Measured], failures: Sequence[str], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "label": row.label,
        "kind": row.kind,
        "failures": list(failures),
        "report": None
        if row.published is None
        else {
            "where": row.published.where,
            "ratio": row.published.ratio,
            "kl": row.published.kl,
            "top1": row.published.top1,
            "perplexity_change": row.published.perplexity_change,
        },
    }
    if failures or not measured:
        return facts | {"met": False}
    raws = [prompt.source.captured_bytes for prompt in prompts]
    values = [raw[1] // prompt.source.trace.geometry.item_bytes for raw, prompt in zip(raws, prompts, strict=True)]
    each: list[dict[str, Any]] = []
    for one, (raw_trace, raw_final), count in zip(measured, raws, values, strict=True):
        each.append(
            {
                "codec": row.label if one.recipe is None else one.recipe.name,
                "parameters": {} if one.recipe is None else one.recipe.parameters(),
                "file_bytes": one.file_bytes,
                "encode_seconds": one.encode_seconds,
                "ratio_trace": raw_trace / one.file_bytes,
                "ratio_final": raw_final / one.file_bytes,
                "ratio_final_fp32": 4 * count / one.file_bytes,
                "ratio_final_fp16": 2 * count / one.file_bytes,
                "coded_share": one.coded_share,
                **one.fidelity.to_dict(),
            }
        )
    kls = [one.fidelity.kl_mean for one in measured]
    changes = [one.fidelity.perplexity_restored - one.fidelity.perplexity_exact for one in measured]
    kept = row.limits is None or (
        _mean(kls) <= row.limits.max_kl and _mean([e["top1"] for e in each]) >= row.limits.min_top1
    )
    return facts | {
        "limits": None if row.limits is None else vars(row.limits),
        "kept": kept,
        "met": row.tier is None
        or row.tier.ratio is None
        or all(e["ratio_final_fp32" if row.kind == "klt" else "ratio_trace"] >= row.tier.ratio for e in each),
        "codec": each[0]["codec"],
        "positions": sum(one.fidelity.positions for one in measured),
        **{
            name: _mean([e[name] for e in each])
            for name in (
                "ratio_trace",
                "ratio_final",
                "ratio_final_fp32",
                "ratio_final_fp16",
                "encode_seconds",
                "top1",
                "perplexity_ratio",
                "rms_delta_p",
            )
        },
        "kl_mean": _mean(kls),
        "verdict": verdict(_mean(kls)),
        # over positions taken as independent, and over prompts taken as clusters: the second one is the safer
        "kl_mean_se": _combined([one.fidelity.kl_mean_se for one in measured]),
        "kl_mean_se_prompts": _se(kls),
        "top1_se": _combined([one.fidelity.top1_se for one in measured]),
        "top1_se_prompts": _se([one.fidelity.top1 for one in measured]),
        "perplexity_change": _mean(changes),
        "perplexity_change_se_prompts": _se(changes),
        "coded_share": None if each[0]["coded_share"] is None else _mean([e["coded_share"] for e in each]),
        "prompts": each,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _se(values: Sequence[float]) -> float | None:
    """Standard error of the mean of values, None of a single one."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _combined(errors: Sequence[float]) -> float:
    """Standard error of the mean of independent means of equal weight."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


def document(
    suite: str, bench: Bench, rows: list[dict[str, Any]], texts: Sequence[tuple[str, bytes]], argv: Sequence[str]
) -> dict[str, Any]:
    """Everything that is needed to read the figures, and to measure them again."""
    return described(suite, texts, argv, bench.loaded) | {
        "protocol": {
            **vars(bench.protocol),
            "snapshots": len(bench.prompts[0].source.trace),
            "scored": "first snapshot, on the text that followed",
            "kl": "mean KL(exact || restored) in nats over positions",
        },
        "profile": profile_facts(bench.prompts[0].profile),
        "rows": rows,
    }


def described(suite: str, texts: Sequence[tuple[str, bytes]], argv: Sequence[str], loaded: Loaded) -> dict[str, Any]:
    """What every document says."""
    parameter = next(loaded.model.parameters())
    return {
        "schema": SCHEMA,
        "suite": suite,
        "argv": list(argv),
        "created": time.strftime("%Y-%m-%d"),
        "model": {
            "name": loaded.name,
            "dtype": dtype_name(parameter.dtype),
            "fingerprint": fingerprint.of(loaded.model, loaded.tokenizer),
        },
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "device": str(parameter.device),
        },
        "texts": [
            {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in texts
        ],
        "versions": {"tsc": VERSION, "python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def profile_facts(profile: Profile | None) -> dict[str, Any] | None:
    """What a document says of the profile that it was measured with."""
    if profile is None:
        return None
    return {"digest": profile.digest, "bytes": profile.size, "info": profile.info}


def default_texts() -> list[str]:
    """Texts that every machine has: modules of Python's own library, which are prose and code."""
    import argparse
    import pathlib
    import statistics
    import typing

    return [path for path in (m.__file__ for m in (argparse, statistics, typing, pathlib)) if path is not None]
