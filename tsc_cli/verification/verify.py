"""Verify: restore snapshots and score them against the exact cache.

The exact cache is recomputed from the token ids in the file, in the same chunks and steps as at
capture, or comes out of another file. Both caches are then fed the same reference continuation and
their predictions compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats import Trace
from formats.errors import UsageError
from formats.file import promises
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import continuation, score
from tsc_cli.huggingface.prompts import encoder_output_of
from tsc_cli.huggingface.sampling import Sampler, check_seed
from tsc_cli.progress import Progress, nothing
from tsc_cli.scoring.continuations import (
    MOST_POSITIONS,
    check_positions,
    followed,
    needs_sample,
    reference_of,
    sample_after,
)
from tsc_cli.scoring.fidelity import compare, first_difference
from tsc_cli.scoring.recall import measure_recall, recall_passes
from tsc_cli.scoring.result import Verified
from tsc_cli.session.replay import passes_to, replayed

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class VerifyOptions:
    """What to measure.

    Attributes:
        positions: teacher-forced positions.
        greedy: tokens generated greedily from both caches to find where they differ; 0 skips it.
        seed: of the sampled continuation.
        recall: also repeat passages of the context, each with at most `positions` predictions; see
            `recall`.
        allow_beyond_positions: measure beyond the positions that the model was made for, too.
    """

    positions: int = 256
    greedy: int = 64
    seed: int = 0
    recall: bool = False
    allow_beyond_positions: bool = False


def verify(
    trace: Trace,
    model: PreTrainedModel | ModelAdapter,
    snapshot: int = -1,
    *,
    options: VerifyOptions | None = None,
    against: Trace | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    allow_model_mismatch: bool = False,
) -> Verified:
    """Score a restored snapshot against the exact cache.

    Args:
        snapshot: which one; negative numbers count from the end.
        against: take the exact rows from this trace of the same tokens instead of recomputing them.
        tokenizer: if given, it must be the one of the capture.
        allow_model_mismatch: go on although the trace belongs to another model.
    Raises:
        MismatchError: the trace belongs to another model.
        UsageError: no such snapshot, `against` was compressed or holds other tokens, one token is
            all there is to recall, or the model has no position left after the snapshot.
    """
    return verify_snapshots(
        trace,
        model,
        [snapshot],
        options=options,
        against=against,
        tokenizer=tokenizer,
        allow_model_mismatch=allow_model_mismatch,
    )[0]


def verify_snapshots(
    trace: Trace,
    model: PreTrainedModel | ModelAdapter,
    snapshots: Sequence[int],
    *,
    options: VerifyOptions | None = None,
    against: Trace | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    allow_model_mismatch: bool = False,
    progress: Progress = nothing,
) -> list[Verified]:
    """Score several snapshots, as `verify` does one, with one exact run and one continuation.

    Args:
        progress: called with the number of passes done; `passes` says how many there will be.
    Returns:
        one result a snapshot, in the order of the trace.
    """
    adapter, options = ModelAdapter.of(model), options or VerifyOptions()
    if against is not None and (lost_by := promises.loss_of_trace(against)):
        raise UsageError(
            f"was compressed ({lost_by}): its rows are not the exact ones",
            path=against.path,
            hint="--against takes the captured file",
        )
    wanted = sorted({trace.index(number) for number in snapshots})
    if not allow_model_mismatch:
        fingerprint.require_same(trace.fingerprint, fingerprint.of(adapter, tokenizer))
    check_positions(adapter, options.positions)
    check_seed(options.seed)
    if not 0 <= options.greedy <= MOST_POSITIONS:
        raise UsageError(f"greedy is not from 0 to {MOST_POSITIONS}")
    plan = _Plan.of(trace, wanted, against=against is not None)
    exact_by_number = dict(_exact_caches(trace, adapter, plan.first_pass, against, progress))
    sampled: list[int] = []
    if plan.sample:
        beyond = options.allow_beyond_positions
        last = exact_by_number[len(trace) - 1]
        sampled = sample_after(trace, adapter, last, options.positions, options.seed, progress, beyond=beyond)
    source = "recomputed" if against is None else "file"
    exact_caches = (
        _exact_caches(trace, adapter, plan.second_pass, against, progress)
        if plan.second_pass
        else exact_by_number.items()
    )
    # a generator, so that each snapshot's caches are released before the next one's are made
    return [
        _score(trace, adapter, number, exact, sampled, source, options, progress)
        for number, exact in exact_caches
        if number in wanted
    ]


def _score(
    trace: Trace,
    adapter: ModelAdapter,
    number: int,
    exact: Cache,
    sampled: Sequence[int],
    source: str,
    options: VerifyOptions,
    progress: Progress,
) -> Verified:
    """Restore one snapshot and compare it with its exact cache."""
    restored = restore.to_cache(trace, adapter, number, allow_model_mismatch=True)
    history = trace.token_ids(number)
    name, reference = reference_of(trace, number, sampled)
    beyond = options.allow_beyond_positions
    tokens = followed(trace, adapter, number, reference, options.positions, beyond=beyond)
    free = adapter.positions.room(len(history), beyond=beyond)
    greedy = min(options.greedy, free + 1)  # the last of them is not fed
    fidelity = compare(score(adapter, exact, tokens[:-1]), score(adapter, restored, tokens[:-1]), tokens[1:])
    progress(2)
    diverges_at = recall = None
    if greedy:
        paths = [continuation(adapter, cache, reference[0], greedy, Sampler(), progress) for cache in (exact, restored)]
        diverges_at = first_difference(*paths)
    if options.recall:
        recall = measure_recall(adapter, exact, restored, history, min(options.positions, free), progress)
    identical = caches.identical(exact, restored)
    return Verified(number, len(history), name, source, identical, fidelity, greedy, diverges_at, recall)


_MAX_CACHES = 4  # exact caches in memory at once; with more snapshots the run is replayed


@dataclass(frozen=True)
class _Plan:
    """The snapshots whose exact caches are made in each of two runs.

    Sampling needs the last snapshot before the first one can be scored. Up to four caches are kept
    from that run. More would fill the memory, so that a second run makes them one by one.

    Attributes:
        sample: whether tokens are sampled after the last snapshot.
        feeds: how many passes both runs replay, the prompt as one.
    """

    first_pass: list[int]
    second_pass: list[int]
    sample: bool
    feeds: int

    @classmethod
    def of(cls, trace: Trace, wanted: list[int], *, against: bool) -> _Plan:
        sample = any(needs_sample(trace, number) for number in wanted)
        everything = sorted({*wanted, len(trace) - 1}) if sample else wanted
        few = len(everything) <= _MAX_CACHES
        first = everything if few else [len(trace) - 1] if sample else []
        second = [] if few else wanted
        feeds = (
            0
            if against
            else sum(passes_to(trace, len(trace.token_ids(numbers[-1]))) for numbers in (first, second) if numbers)
        )
        return cls(first, second, sample, feeds)


def passes(trace: Trace, snapshots: Sequence[int], options: VerifyOptions, *, against: bool) -> int:
    """Return how many forward passes `verify_snapshots` will report to its `progress`."""
    wanted = sorted({trace.index(number) for number in snapshots})
    plan = _Plan.of(trace, wanted, against=against)
    recalled = wanted if options.recall else []
    again = sum(recall_passes(len(trace.token_ids(number)), options.positions) for number in recalled)
    return plan.feeds + (options.positions + 1) * plan.sample + len(wanted) * (2 + 2 * options.greedy) + again


def _exact_caches(
    trace: Trace, adapter: ModelAdapter, wanted: Sequence[int], against: Trace | None, progress: Progress
) -> Iterator[tuple[int, Cache]]:
    """Yield (number, exact cache) of each wanted snapshot, in order."""
    if not wanted:
        return
    if against is not None:
        for number in wanted:
            if number >= len(against) or against.token_ids(number) != trace.token_ids(number):
                raise UsageError(f"the file to compare with holds other tokens at snapshot {number}")
            yield number, restore.to_cache(against, adapter, number, allow_model_mismatch=True)
        return
    tokens = trace.token_ids(wanted[-1])
    for number in wanted:
        history = trace.token_ids(number)
        if history != tokens[: len(history)]:
            raise UsageError(
                f"snapshot {number} is not a beginning of snapshot {wanted[-1]}: one at a time, please",
                hint=f"--snapshots {number}",
            )
    lengths = {len(trace.token_ids(number)): number for number in wanted}
    for length, cache in replayed(trace, adapter, tokens, list(lengths), encoder_output_of(trace, adapter), progress):
        yield lengths[length], cache
