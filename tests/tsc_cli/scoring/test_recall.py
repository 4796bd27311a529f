"""Recall finds nothing lost in an exact cache, and finds the passage that a damaged one lost."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

from formats.errors import UsageError
from tests.support import models
from tsc_cli import capture, load, save, verify, verify_snapshots
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.caches import fork
from tsc_cli.huggingface.generation import feed
from tsc_cli.scoring.recall import PASSAGES, measure_recall, passages
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.verification.verify import VerifyOptions, passes


class Copier(torch.nn.Module):
    """Predicts what followed the best match of the last tokens in its cache: an induction head without training.

    A row's key says which tokens stood before it, its value which token it is; a query is looked up by the last tokens,
    the nearest of which count most.
    """

    def __init__(self, order: int = 8, vocabulary: int = 256) -> None:
        super().__init__()
        self.config = transformers.PreTrainedConfig()
        self.order, self.vocabulary = order, vocabulary
        codes = torch.randn(vocabulary, 32, generator=torch.Generator().manual_seed(0))
        self.codes = torch.nn.Parameter(torch.nn.functional.normalize(codes), requires_grad=False)

    def forward(self, input_ids: torch.Tensor, past_key_values: DynamicCache, use_cache: bool = True) -> Any:
        known: list[int] = []
        if past_key_values.get_seq_length():
            known = past_key_values.layers[0].values[0, 0, -self.order :].argmax(-1).tolist()
        padded = torch.tensor([0] * (self.order - len(known)) + known + input_ids[0].tolist())
        # by position: the `order` tokens before it, the last of them first
        before = padded.unfold(0, self.order, 1).flip(-1)
        looked_up = (self.codes[before] * 0.7 ** torch.arange(self.order)[:, None]).flatten(1)
        values = torch.nn.functional.one_hot(input_ids, self.vocabulary).float()
        all_keys, all_values = past_key_values.update(looked_up[None, None, :-1], values[None], 0)
        scores = 20 * looked_up[1:] @ all_keys[0, 0].T
        seen = torch.ones_like(scores).tril(all_keys.shape[2] - input_ids.shape[1]).bool()
        found = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ all_values[0, 0]
        return SimpleNamespace(logits=(found + 1e-4).log()[None], past_key_values=past_key_values)


def filled(model: Any, tokens: list[int]) -> DynamicCache:
    cache = DynamicCache()
    feed(ModelAdapter(model), cache, tokens)
    return cache


def without(cache: DynamicCache, first: int, stop: int) -> DynamicCache:
    """A copy of a cache whose values are zero in some rows."""
    damaged = fork(cache)
    layer = damaged.layers[0]
    layer.values = layer.values.clone()
    layer.values[:, :, first:stop] = 0
    return damaged


def test_a_passage_that_was_lost_is_missed_more_than_other_rows() -> None:
    model, tokens = Copier(), models.prompt(300)
    exact = filled(model, tokens)
    starts, predicted = passages(len(tokens), 40)
    assert (starts, predicted) == ((4, 131, 259), 40)
    nothing, passage, elsewhere = (
        measure_recall(ModelAdapter(model), exact, cache, tokens, 40)
        for cache in (exact, without(exact, 131, 172), without(exact, 190, 231))
    )
    assert (nothing.fidelity.kl_mean, nothing.fidelity.top1) == (0, 1)
    assert nothing.fidelity.perplexity_exact < 1.5  # it does copy
    assert passage.fidelity.top1 < 0.75  # one passage of three
    assert elsewhere.fidelity.top1 > 0.95
    assert passage.fidelity.kl_mean > 10 * elsewhere.fidelity.kl_mean
    assert exact.get_seq_length() == 300


@pytest.mark.parametrize("tokens", [2, 3, 6, 40, 68, 69, 133, 134, 199, 1024])
@pytest.mark.parametrize("positions", [1, 20, 256])
def test_passages_lie_in_the_context_and_apart(tokens: int, positions: int) -> None:
    starts, predicted = passages(tokens, positions)
    assert 1 <= len(starts) <= PASSAGES
    assert 1 <= predicted <= positions
    ends = [start + predicted + 1 for start in starts]
    assert ends[-1] == tokens or len(starts) == 1
    assert ends[-1] <= tokens
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    assert starts[0] == min(4, tokens - 2)


def test_passages_grow_with_the_context() -> None:
    assert passages(1024, 256) == ((4, 385, 767), 256)
    assert passages(200, 256) == ((4, 69, 135), 64)
    assert passages(100, 256) == ((4,), 95)


@pytest.mark.parametrize(("tokens", "positions"), [(1, 10), (0, 10), (10, 0)])
def test_what_holds_no_passage_is_refused(tokens: int, positions: int) -> None:
    with pytest.raises(UsageError, match="nothing can be recalled"):
        passages(tokens, positions)


@pytest.mark.parametrize("build", [models.llama, models.mistral_sliding])
def test_a_restored_file_recalls_what_the_exact_cache_does(build: Any, tmp_path: Path) -> None:
    model = build()
    save(capture(model, models.prompt(90), options=CaptureOptions(steps=2, chunk=32)), tmp_path / "t.tsc")
    wanted, options = (0, -1), VerifyOptions(positions=20, greedy=0, recall=True)
    done: list[int] = []
    results = verify_snapshots(load(tmp_path / "t.tsc"), model, wanted, options=options, progress=done.append)
    for result in results:
        assert result.recall is not None
        assert (result.recall.fidelity.kl_mean, result.recall.fidelity.top1) == (0, 1)
        assert result.recall.fidelity.positions == 60
    assert sum(done) == passes(load(tmp_path / "t.tsc"), wanted, options, against=False)


def test_a_context_of_one_token_is_verified_but_not_recalled() -> None:
    model = models.llama()
    trace = capture(model, models.prompt(1), steps=0)
    options = VerifyOptions(positions=2, greedy=0)
    assert passes(trace, [-1], options, against=False) > 0
    assert verify(trace, model, options=options).recall is None
    with pytest.raises(UsageError, match="nothing can be recalled"):
        verify(trace, model, options=VerifyOptions(positions=2, greedy=0, recall=True))


def test_recall_is_shown_and_recorded_when_it_is_asked_for(tsc: Any, tmp_path: Path) -> None:
    folder, file = models.save_small_model(tmp_path / "model"), tmp_path / "t.tsc"
    save(capture(models.loaded(folder), models.prompt(40), steps=1, tokenizer=models.byte_tokenizer()), file)
    base = ("verify", file, "-m", folder, "--positions", 8, "--greedy", 0)
    assert tsc(*base, "--json").json["results"][0]["recall"] is None
    result = tsc(*base, "--recall", "--record", "--json").json["results"][0]
    assert result["recall"]["passage_starts"] == [4, 18, 32]
    assert result["recall"]["kl_mean"] == 0
    (quality,) = load(file).quality
    assert quality["recall_passage_starts"] == "4,18,32"
    assert (quality["recall_kl_mean"], quality["recall_top1"], quality["recall_positions"]) == (0, 1, 24)
    assert tsc("test", file).code == 0
    assert "24 positions, passages from tokens 4, 18, 32 on" in tsc(*base, "--recall").out
    assert "recall KL" in tsc(*base, "--recall", "--snapshots", "all").out
    tsc(*base, "--record")
    assert not any(key.startswith("recall") for key in load(file).quality[0])
