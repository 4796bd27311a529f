"""Eviction: what attention is observed, which rows are kept, and that a model goes on at the right position."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache

from formats import Trace, load, save
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from formats.errors import UnsupportedCacheError, UsageError
from tests.support import models
from tests.support.traces import same_bits
from tsc_cli import capture
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.attention_observer import observed
from tsc_cli.huggingface.generation import feed, prefill, score
from tsc_cli.scoring.fidelity import compare
from tsc_cli.session.decode_loop import CaptureOptions

PROMPT = 60


def sharp() -> Any:
    """A small llama whose predictions depend on positions: large weights make attention peaked."""
    return models.llama(initializer_range=0.3)


def compressed(trace: Trace, recipe: Recipe, folder: Path) -> Trace:
    path = folder / "evicted.tsc"
    with path.open("wb") as sink:
        write(Source(trace), recipe, sink)
    return load(path)


@pytest.fixture(scope="module")
def model() -> Any:
    return sharp()


@pytest.fixture(scope="module")
def trace(model: Any) -> Trace:
    return capture(model, models.prompt(PROMPT), options=CaptureOptions(steps=6, attention=True))


def own_scaling() -> Any:
    """Queries are multiplied by a number of the config, twice what the size of a head would make it."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_multiplier": 2 * 12**-0.5}
    config = transformers.GraniteConfig(**models.SMALL, **heads, pad_token_id=0, initializer_range=0.3)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


OBSERVED = {"llama": models.llama, "qwen3": models.qwen3, "sharp": sharp, "own scaling": own_scaling}


def eager_attention(model: Any, tokens: list[int]) -> list[torch.Tensor]:
    """Attention received, summed over queries and the query heads of a group, from the model's own eager path."""
    model.set_attn_implementation("eager")
    attentions = model(torch.tensor([tokens]), output_attentions=True).attentions
    heads = model.config.get_text_config().num_key_value_heads
    return [a[0].unflatten(0, (heads, -1)).sum((1, 2)) for a in attentions]


@pytest.mark.parametrize("kind", OBSERVED)
@pytest.mark.parametrize("chunk", [7, 64])
def test_observed_attention_is_what_the_eager_path_computes(kind: str, chunk: int) -> None:
    tokens = models.prompt(40)
    want = eager_attention(OBSERVED[kind](), tokens)
    model = OBSERVED[kind]()
    with observed(ModelAdapter(model)) as observation:
        cache, _ = prefill(ModelAdapter(model), tokens, chunk=chunk)
    (received,) = observation.records(caches.geometry_of(cache, kind), len(tokens))
    assert torch.allclose(received.read(), torch.stack(want), atol=1e-4)
    assert torch.allclose(received.read().sum((1, 2)), torch.tensor(40.0 * model.config.num_attention_heads))


def test_observing_changes_nothing() -> None:
    model, tokens = models.llama(), models.prompt(30)
    plain = capture(model, tokens, steps=2)
    watched = capture(model, tokens, options=CaptureOptions(steps=2, attention=True))
    for a, b in zip(plain.snapshot().keys, watched.snapshot().keys, strict=True):
        assert same_bits(a, b)
    assert not plain.attention
    assert len(watched.attention) == 1


def test_a_model_that_cannot_be_observed_is_refused() -> None:
    model = models.llama()
    model.set_attn_implementation("eager")
    with pytest.raises(UnsupportedCacheError, match="runs with eager attention"):
        capture(model, models.prompt(9), options=CaptureOptions(steps=0, attention=True))


def test_attention_survives_a_file(trace: Trace, tmp_path: Path) -> None:
    save(trace, tmp_path / "a.tsc")
    (have,), (want,) = load(tmp_path / "a.tsc").attention, trace.attention
    assert same_bits(have.read(), want.read())


def test_h2o_keeps_sinks_recent_rows_and_heavy_hitters(trace: Trace, tmp_path: Path) -> None:
    recipe = Recipe("lossless", evict="h2o", evict_settings={"keep": 0.5, "sinks": 3, "recent": 0.4})
    evicted = compressed(trace, recipe, tmp_path)
    received = trace.attention[0].read()
    whole, short = trace.snapshot(0), evicted.snapshot(0)
    for layer in range(3):
        positions = short.row_positions[layer]
        assert positions.shape == (2, 30)
        for head in range(2):
            kept = positions[head].tolist()
            assert kept == sorted(kept)
            assert {0, 1, 2, *range(PROMPT - 12, PROMPT)} <= set(kept)
            hitters = set(kept) - {0, 1, 2, *range(PROMPT - 12, PROMPT)}
            least = min(float(received[layer, head, row]) for row in hitters)
            dropped = set(range(PROMPT)) - set(kept)
            assert all(float(received[layer, head, row]) <= least for row in dropped)
            # the rows themselves are those of these positions, bit for bit
            assert same_bits(short.keys[layer][0, head], whole.keys[layer][0, head, kept])
            assert same_bits(short.values[layer][0, head], whole.values[layer][0, head, kept])
    assert not torch.equal(short.row_positions[0][0], short.row_positions[0][1])  # heads differ, or this tests little


def test_steps_after_the_eviction_are_kept(trace: Trace, tmp_path: Path) -> None:
    evicted = compressed(trace, Recipe("lossless", evict="h2o", evict_settings={"keep": 0.5}), tmp_path)
    for number in range(len(trace)):
        moment = evicted.snapshot(number)
        assert moment.token_ids == trace.token_ids(number)
        assert moment.keys[1].shape[2] == 30 + number
        assert moment.row_positions[1][0, 30:].tolist() == list(range(PROMPT, PROMPT + number))


def test_the_ratio_is_that_of_what_was_captured(trace: Trace, tmp_path: Path) -> None:
    evicted = compressed(trace, Recipe("lossless", evict="h2o", evict_settings={"keep": 0.5}), tmp_path)
    assert (evicted.raw_bytes, evicted.raw_bytes_final) == (trace.raw_bytes, trace.raw_bytes_final)
    streaming = compressed(trace, Recipe("lossless", evict="streaming", evict_settings={"window": 9}), tmp_path)
    assert streaming.raw_bytes == trace.raw_bytes


def test_streaming_keeps_sinks_and_a_window(trace: Trace, tmp_path: Path) -> None:
    recipe = Recipe("lossless", evict="streaming", evict_settings={"sinks": 2, "window": 10})
    evicted = compressed(trace, recipe, tmp_path)
    for number in (0, 3, -1):
        total = len(trace.token_ids(number))
        want = [0, 1, *range(total - 10, total)]
        assert evicted.snapshot(number).row_positions[2].tolist() == want
        assert same_bits(evicted.snapshot(number).values[2], trace.snapshot(number).values[2][:, :, want])


def test_a_model_goes_on_as_with_the_evicted_rows_masked(model: Any, trace: Trace, tmp_path: Path) -> None:
    """The ground truth: the full cache, with a mask that hides the rows that streaming dropped."""
    recipe = Recipe("lossless", evict="streaming", evict_settings={"sinks": 2, "window": 20})
    restored = restore.to_cache(compressed(trace, recipe, tmp_path), model, 0)
    tokens = models.prompt(5, seed=9)
    have = score(ModelAdapter(model), restored, tokens)
    visible = torch.ones(1, 1, len(tokens), PROMPT + len(tokens)).tril(PROMPT).bool()
    visible[..., 2 : PROMPT - 20] = False
    full = restore.to_cache(trace, model, 0)
    positions = torch.arange(PROMPT, PROMPT + len(tokens))[None]
    with torch.no_grad():
        want = model(
            torch.tensor([tokens]), attention_mask=visible, position_ids=positions, **models.given(model, full)
        ).logits[0]
    assert torch.allclose(have, want, atol=1e-4)


def test_generate_goes_on_at_the_right_position(model: Any, trace: Trace, tmp_path: Path) -> None:
    """transformers' own `generate` takes the restored cache; one call and single steps agree."""
    evicted = compressed(trace, Recipe("lossless", evict="h2o", evict_settings={"keep": 0.5}), tmp_path)
    history = evicted.token_ids(0)
    first = 17
    with torch.no_grad():
        generated = model.generate(
            torch.tensor([[*history, first]]),
            max_new_tokens=6,
            do_sample=False,
            **models.given_to_generate(restore.to_cache(evicted, model, 0)),
        )[0, len(history) :].tolist()
    cache, want = restore.to_cache(evicted, model, 0), [first]
    for _ in range(6):
        want.append(int(feed(ModelAdapter(model), cache, want[-1:])[-1].argmax()))
    assert generated == want
    assert cache.get_seq_length() == PROMPT + 6


def test_wrong_positions_cost_several_times_the_kl(model: Any, trace: Trace, tmp_path: Path) -> None:
    evicted = compressed(trace, Recipe("lossless", evict="h2o", evict_settings={"keep": 0.75}), tmp_path)
    tokens = models.prompt(40, seed=4)
    exact = score(ModelAdapter(model), restore.to_cache(trace, model, 0), tokens)
    right = compare(exact, score(ModelAdapter(model), restore.to_cache(evicted, model, 0), tokens), tokens)
    # what a cache does that does not know what was evicted: the next position is the number of its rows
    naive = DynamicCache(config=model.config)
    moment = evicted.snapshot(0)
    for layer, (keys, values) in enumerate(zip(moment.keys, moment.values, strict=True)):
        naive.update(keys, values, layer)
    wrong = compare(exact, score(ModelAdapter(model), naive, tokens), tokens)
    assert wrong.kl_mean > 3 * right.kl_mean


def test_the_last_row_can_be_fed_again(model: Any, trace: Trace, tmp_path: Path) -> None:
    evicted = compressed(trace, Recipe("lossless", evict="h2o", evict_settings={"keep": 0.5}), tmp_path)
    cache = restore.to_cache(evicted, model, 3)
    before = caches.rows_of(cache)[0][0].clone()
    cache.crop(-1)
    assert cache.get_seq_length() == PROMPT + 2
    feed(ModelAdapter(model), cache, evicted.token_ids(3)[-1:])
    assert cache.get_seq_length() == PROMPT + 3
    # the first layer's keys depend on the token and its position alone
    assert torch.allclose(before, caches.rows_of(cache)[0][0], atol=1e-5)


def test_sliding_layers_are_left_alone(tmp_path: Path) -> None:
    model = models.gemma3_mixed()
    trace = capture(model, models.prompt(40), options=CaptureOptions(steps=2, attention=True))
    evicted = compressed(trace, Recipe("lossless", evict="h2o", evict_settings={"keep": 0.5}), tmp_path)
    kinds = [spec.kind for spec in trace.geometry.layers]
    rows = [keys.shape[2] for keys in evicted.snapshot(0).keys]
    assert rows == [20 if kind == "full" else 15 for kind in kinds]
    cache = restore.to_cache(evicted, model, 0)
    together = score(ModelAdapter(model), cache, models.prompt(6, seed=2))
    one_by_one = torch.cat([feed(ModelAdapter(model), cache, [token]) for token in models.prompt(6, seed=2)])
    assert torch.allclose(together, one_by_one, atol=1e-4)


def test_what_cannot_be_evicted_is_refused(trace: Trace) -> None:
    blind = dataclasses.replace(trace, attention=())
    with pytest.raises(UsageError, match=r"does not say which attention .* layer 0") as caught:
        Source(blind).filtered(Recipe("lossless", evict="h2o"))
    assert caught.value.hint == "capture it with --attention"
    with pytest.raises(UsageError, match="there is no filter 'snapkv'"):
        Source(trace).filtered(Recipe("lossless", evict="snapkv"))
    with pytest.raises(UsageError, match=r"keep=1\.5 is not over 0"):
        Source(trace).filtered(Recipe("lossless", evict="h2o", evict_settings={"keep": 1.5}))
