"""The document of a benchmark, `tsc.bench/1`: summaries of rows, and everything to repeat them."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from formats.container.safetensors_buffer import dtype_name
from formats.version import VERSION
from tsc_cli.compression.report import published_facts
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.scoring.published import verdict

from .codecs import Bench, Measured, Prompt
from .suites import Row

if TYPE_CHECKING:
    from formats.codecs.klt.profile import Profile
    from tsc_cli.huggingface.models.loading import Loaded

SCHEMA = "tsc.bench/1"
PACKAGES = ("torch", "transformers", "zstandard", "safetensors", "numpy")


def summary(
    row: Row, measured: Sequence[Measured], failures: Sequence[str], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Summarize a row: means over prompts with standard errors, and the figures of each prompt."""
    facts: dict[str, Any] = {
        "label": row.label,
        "kind": row.kind,
        "failures": list(failures),
        "report": published_facts(row.published),
    }
    if failures or not measured:
        return facts | {"met": False}
    each = [_of_prompt(row, result, prompt) for result, prompt in zip(measured, prompts, strict=True)]
    fidelities = [result.fidelity for result in measured]
    kls = [fidelity.kl_mean for fidelity in fidelities]
    changes = [fidelity.perplexity_restored - fidelity.perplexity_exact for fidelity in fidelities]
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
        "positions": sum(fidelity.positions for fidelity in fidelities),
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
        # positions taken as independent, and prompts taken as clusters, which is safer
        "kl_mean_se": _combined([fidelity.kl_mean_se for fidelity in fidelities]),
        "kl_mean_se_prompts": _se(kls),
        "top1_se": _combined([fidelity.top1_se for fidelity in fidelities]),
        "top1_se_prompts": _se([fidelity.top1 for fidelity in fidelities]),
        "perplexity_change": _mean(changes),
        "perplexity_change_se_prompts": _se(changes),
        "coded_share": None if each[0]["coded_share"] is None else _mean([e["coded_share"] for e in each]),
        "prompts": each,
    }


def _of_prompt(row: Row, measured: Measured, prompt: Prompt) -> dict[str, Any]:
    """Return the figures of a row on one prompt."""
    recipe, file_bytes = measured.recipe, measured.file_bytes
    raw_trace, raw_final = prompt.source.captured_bytes
    values = raw_final // prompt.source.trace.geometry.item_bytes
    return {
        "codec": row.label if recipe is None else recipe.name,
        "parameters": {} if recipe is None else recipe.parameters(),
        "file_bytes": file_bytes,
        "encode_seconds": measured.encode_seconds,
        "ratio_trace": raw_trace / file_bytes,
        "ratio_final": raw_final / file_bytes,
        "ratio_final_fp32": 4 * values / file_bytes,
        "ratio_final_fp16": 2 * values / file_bytes,
        "coded_share": measured.coded_share,
        **measured.fidelity.to_dict(),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _se(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean of values; None for a single value."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _combined(errors: Sequence[float]) -> float:
    """Return the standard error of the mean of independent means with equal weights."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors)


def document(
    suite: str,
    bench: Bench,
    rows: Sequence[Row],
    results: Sequence[tuple[list[Measured], list[str]]],
    texts: Sequence[tuple[str, bytes]],
    argv: Sequence[str],
) -> dict[str, Any]:
    """Return the document of a suite: the rows, and everything to measure them again."""
    return described(suite, texts, argv, bench.loaded) | {
        "protocol": {
            **vars(bench.protocol),
            "snapshots": len(bench.prompts[0].source.trace),
            "scored": "first snapshot, on the text that followed",
            "kl": "mean KL(exact || restored) in nats over positions",
        },
        "profile": profile_facts(bench.prompts[0].profile),
        "rows": [summary(row, *result, bench.prompts) for row, result in zip(rows, results, strict=True)],
    }


def described(suite: str, texts: Sequence[tuple[str, bytes]], argv: Sequence[str], loaded: Loaded) -> dict[str, Any]:
    """Return the common part of all documents: model, hardware, texts and versions."""
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
    """Describe the profile that was measured with."""
    if profile is None:
        return None
    return {"digest": profile.digest, "bytes": profile.size, "info": profile.info}
