"""Verify finds nothing where nothing was lost, and finds what was."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import Trace, TraceBuilder, deduplicate
from formats.container.records import Part
from formats.errors import MismatchError, UsageError
from formats.trace.blocks import MemoryBlock
from tests.support import models
from tsc_cli import capture, load, save, to_cache, verify, verify_snapshots
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import score
from tsc_cli.huggingface.sampling import Sampler
from tsc_cli.scoring.fidelity import Fidelity, compare
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.session.resume import resume
from tsc_cli.verification.verify import VerifyOptions, passes


@pytest.fixture(scope="module")
def model() -> Any:
    return models.llama()


@pytest.fixture(scope="module")
def trace(model: Any) -> Trace:
    return capture(
        model, models.prompt(40), options=CaptureOptions(steps=6, chunk=16), reference=models.prompt(120, seed=3)
    )


def damaged(trace: Trace, scale: float) -> Trace:
    """The same trace with noise on its values."""
    builder = TraceBuilder(trace.geometry, trace.fingerprint)
    generator = torch.Generator().manual_seed(0)
    for block in trace.blocks:
        rows = dict(block.read())
        noise = torch.randn(rows[Part.VALUES].shape, generator=generator)
        rows[Part.VALUES] = rows[Part.VALUES] * (1 + scale * noise)
        builder.add_block(MemoryBlock(block.key, rows))
    return replace(builder.trace, views=trace.views, labels=trace.labels, info=trace.info, reference=trace.reference)


def test_nothing_is_lost_at_any_snapshot(model: Any, trace: Trace, tmp_path: Path) -> None:
    save(trace, tmp_path / "t.tsc")
    results = verify_snapshots(
        load(tmp_path / "t.tsc"), model, range(7), options=VerifyOptions(positions=100, greedy=8)
    )
    assert [r.snapshot for r in results] == list(range(7))
    assert [r.reference for r in results] == ["text"] + ["sampled"] * 6
    for result in results:
        assert result.identical
        assert result.fidelity.kl_mean == 0
        assert result.fidelity.top1 == 1
        assert result.diverges_at is None
        assert result.fidelity.positions == 100


def test_noise_shows_and_more_noise_shows_more(model: Any, trace: Trace) -> None:
    small, large = (verify(damaged(trace, scale), model, options=VerifyOptions(positions=100)) for scale in (0.02, 0.5))
    assert not small.identical
    assert 0 < small.fidelity.kl_mean < large.fidelity.kl_mean
    assert large.fidelity.top1 < 1
    assert large.diverges_at is not None


def test_against_another_file_gives_the_same_as_recomputing(model: Any, trace: Trace) -> None:
    lossy = damaged(trace, 0.1)
    recomputed = verify_snapshots(lossy, model, (0, -1), options=VerifyOptions(positions=50, greedy=4))
    compared = verify_snapshots(lossy, model, (0, -1), against=trace, options=VerifyOptions(positions=50, greedy=4))
    assert [r.fidelity for r in recomputed] == [r.fidelity for r in compared]
    assert {r.exact for r in compared} == {"file"}


def test_against_a_file_of_other_tokens_is_refused(model: Any, trace: Trace) -> None:
    other = capture(model, models.prompt(40, seed=9), steps=6)
    with pytest.raises(UsageError, match="other tokens"):
        verify(trace, model, against=other)


def test_another_model_is_refused(trace: Trace) -> None:
    with pytest.raises(MismatchError, match="architecture"):
        verify(trace, models.mistral_sliding())


@pytest.mark.parametrize("snapshots", [(0,), (-1,), (0, 3, -1)])
@pytest.mark.parametrize("against", [False, True])
def test_progress_reaches_what_was_announced(
    model: Any, trace: Trace, snapshots: tuple[int, ...], against: bool
) -> None:
    options = VerifyOptions(positions=20, greedy=3)
    done: list[int] = []
    verify_snapshots(trace, model, snapshots, against=trace if against else None, options=options, progress=done.append)
    assert sum(done) == passes(trace, snapshots, options, against=against)


def test_the_reference_of_an_early_snapshot_is_what_the_run_did_next(model: Any, trace: Trace) -> None:
    """The seed chooses the sampled tokens, which follow the last token of the run and none before it."""
    lossy = damaged(trace, 0.1)
    run = trace.token_ids(-1)[len(trace.token_ids(2)) :]

    def scored(positions: int, seed: int) -> Fidelity:
        options = VerifyOptions(positions=positions, greedy=0, seed=seed)
        result = verify(lossy, model, 2, against=trace, options=options)
        assert result.reference == "sampled"
        return result.fidelity

    exact, restored = (score(ModelAdapter(model), to_cache(one, model, 2), run[:-1]) for one in (trace, lossy))
    want = compare(exact, restored, run[1:])
    assert want.positions == 3  # the last token of the run is a target, and is fed to nothing
    assert scored(3, seed=0) == scored(3, seed=1) == want
    assert scored(40, seed=0) != scored(40, seed=1)


def test_a_result_is_plain_json_values(model: Any, trace: Trace) -> None:
    record = verify(trace, model, options=VerifyOptions(positions=1, greedy=0)).to_dict()
    assert record["kl_mean_se"] is None  # one position has no standard error
    assert record["sufficient"] is False
    assert all(isinstance(value, int | float | str | bool | None) for value in record.values())


def test_a_trace_of_caches_of_ones_own_can_be_verified(model: Any, trace: Trace) -> None:
    own = deduplicate([replace(trace.snapshot(n), next_token=None) for n in (0, 6)], trace.geometry)
    result = verify(own, model, options=VerifyOptions(positions=20, greedy=4))
    assert result.tokens == 46
    # its prompt was prefilled in other chunks than at capture: equal within rounding only
    assert result.fidelity.kl_mean < 1e-9
    assert result.diverges_at is None


def test_resuming_from_a_snapshot_without_next_token_feeds_the_last_one_again(model: Any, trace: Trace) -> None:
    own = deduplicate([replace(trace.snapshot(3), next_token=None)], trace.geometry)
    assert list(islice(resume(own, model), 3)) == trace.token_ids(-1)[-3:]
    sliding = models.mistral_sliding()
    windowed = capture(sliding, models.prompt(40), steps=0)
    with pytest.raises(UsageError, match="cannot give up its last token"):
        resume(windowed, sliding, sampler=Sampler(temperature=1.0))
