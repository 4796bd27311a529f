"""The needle suite: of the codes that the exact cache knows, how many does a restored one know?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from formats import Trace
from formats.codecs.klt import profile_store
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import PromiseError, UsageError
from tsc_cli.compression.compressor import Compressor
from tsc_cli.huggingface import restore
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.progress import Progress
from tsc_cli.scoring.scorer import scratch_file
from tsc_cli.session.capture import capture

from .needle import TRIES, Needle, answers, needles
from .suites import BASELINES

if TYPE_CHECKING:
    from tsc_cli.huggingface.models.loading import Loaded

_SLACK = 0.02  # files of a ratio may be so much smaller: every trial of an exact one is an encoding
RATIOS = (63, 125, 219, 429)


def run(
    loaded: Loaded, texts: Sequence[Sequence[int]], count: int, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """One row a codec: {"label", "answerable", "kept", "not_met", "share", "ratio_final_fp32"
    (mean)}.

    A file that cannot be had, since the cache has no file of that ratio, is listed under "not_met"
    and keeps nothing.

    Args:
        texts: token ids without special tokens.
        count: needles.
        progress: called with 1 for each needle.
    Raises:
        UsageError: there is no profile of the model.
    """
    profile = profile_store.for_model(fingerprint.of(loaded.adapter))
    if profile is None:
        raise UsageError("the needle suite measures codec klt, which needs a profile", hint="tsc calibrate makes one")
    labels = [f"klt {ratio}x" for ratio in RATIOS] + ["KIVI-4", "KIVI-2"]
    kept, sizes = dict.fromkeys(labels, 0), {label: list[float]() for label in labels}
    answerable = 0
    for needle in needles(texts, loaded.tokenizer, count, seed):
        loaded.adapter.positions.require_fit(len(needle.context), len(needle.question) + TRIES)
        trace = capture(loaded.adapter, needle.context, tokenizer=loaded.tokenizer)
        if _answers(loaded, trace, needle):
            answerable += 1
            compressor = Compressor(Source(trace), None, profile=profile)
            raw = compressor.source.captured_bytes[1] * 4 / trace.geometry.item_bytes
            for label in labels:
                with (
                    contextlib.suppress(PromiseError),
                    scratch_file(compressor.source, _recipe(compressor, label)) as restored,
                ):
                    sizes[label].append(raw / (restored.stored_bytes or 1))
                    kept[label] += _answers(loaded, restored, needle)
        progress(1)
    return [
        {
            "label": label,
            "needles": count,
            "answerable": answerable,
            "kept": kept[label],
            "not_met": answerable - len(sizes[label]),
            "share": kept[label] / answerable if answerable else None,
            "ratio_final_fp32": sum(sizes[label]) / len(sizes[label]) if sizes[label] else None,
        }
        for label in labels
    ]


def _recipe(compressor: Compressor, label: str) -> Recipe:
    if label in BASELINES:
        return BASELINES[label]
    of_fp32 = float(label.removeprefix("klt ").removesuffix("x"))
    raw, _ = compressor.source.captured_bytes
    # one snapshot: the trace is the cache
    in_float32 = raw * 4 / compressor.source.trace.geometry.item_bytes
    return compressor.klt_within(in_float32 / of_fp32, _SLACK)


def _answers(loaded: Loaded, trace: Trace, needle: Needle) -> bool:
    cache = restore.to_cache(trace, loaded.adapter, allow_model_mismatch=True)
    return answers(loaded.adapter, loaded.tokenizer, cache, needle)
