"""How a restored cache is used from Python: generate, batches, branches; caches that others made; the drill."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, QuantizedCache, StaticCache

from formats.errors import MismatchError, UnsupportedCacheError, UsageError
from tests.support import models
from tests.support.families import PROMPT, REFUSED, SUPPORTED, VOCABULARY
from tests.support.family_runs import capture_small, inputs_of
from tsc_cli import (
    branch,
    capture,
    from_cache,
    from_tuples,
    generate_inputs,
    load,
    repeat,
    save,
    to_cache,
    to_tuples,
    verify,
)
from tsc_cli.huggingface import cache_layers, caches, self_test
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed, prefill
from tsc_cli.verification.verify import VerifyOptions

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "use_cache": True}
# one of each kind in the quick suite
KINDS = {
    "gpt2",
    "llama",
    "falcon-alibi",
    "phi3",
    "mistral-sliding",
    "gemma3",
    "gemma3n",
    "gpt_oss",
    "deepseek_v3",
    "deepseek_v32",
    "jamba",
    "falcon_h1",
    "qwen3_next",
    "lfm2",
    "zamba2",
    "mamba",
    "mamba2",
    "t5",
    "bart",
    "whisper",
}
FAMILIES = [
    family if family in KINDS else pytest.param(family, marks=pytest.mark.full, id=family) for family in SUPPORTED
]
DECODERS = [one for one, sample in zip(FAMILIES, SUPPORTED.values(), strict=True) if not sample.encodes]
LENGTHS = (40, 31, 23, 36)


@functools.cache
def build(family: str) -> Any:
    """A model that the tests share: making one and its drill take longer than most of them.  None changes it."""
    sample = SUPPORTED[family]
    if family == "t5":  # with fewer layers in the encoder than in the decoder, transformers' own `generate` fails
        sample = replace(sample, config=sample.config | {"num_layers": 2})
    return sample.build(torch.float32)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four prompts of different lengths, padded at the left, and their mask."""
    ids, mask = torch.zeros(4, 40, dtype=torch.int64), torch.zeros(4, 40, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for row, length in enumerate(LENGTHS):
        ids[row, 40 - length :] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        mask[row, 40 - length :] = 1
    return ids, mask


@pytest.mark.parametrize("family", DECODERS)
def test_a_batch_of_four_prompts_generates_the_same(family: str, tmp_path: Path) -> None:
    model, (ids, mask) = build(family), batch()
    want = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, **GREEDY)[:, 40:]
    save(capture(model, ids, attention_mask=mask, steps=3), tmp_path / "t.tsc")
    trace = load(tmp_path / "t.tsc")
    for number in (0, 3):
        assert torch.equal(torch.tensor(trace.views[number].next_tokens), want[:, number])
        inputs = generate_inputs(trace, model, number)
        made = model.generate(**inputs, max_new_tokens=11 - number, **GREEDY)
        assert torch.equal(made[:, number - 11 :], want[:, number + 1 :])
    second = trace.sequence(2)
    assert second.token_ids(0) == ids[2, -23:].tolist()
    verified = verify(second, model, 0, options=VerifyOptions(positions=4, greedy=2))
    # an indexer chooses among other rows, and the switch of LongRoPE lies at another length, when padding is counted
    assert verified.fidelity.kl_mean < (1e-2 if family in ("deepseek_v32", "glm_moe_dsa", "phi3-longrope") else 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_goes_on_as_if_nothing_had_happened(family: str) -> None:
    model, inputs = build(family), inputs_of(SUPPORTED[family])
    given = {
        name: value if isinstance(value, torch.Tensor) else torch.tensor([value]) for name, value in inputs.items()
    }
    if "decoder_input_ids" in given:  # `generate` prefills a decoder with the whole prompt only if it is told so
        given["decoder_attention_mask"] = torch.ones_like(given["decoder_input_ids"])
    want = model.generate(**given, max_new_tokens=12, **GREEDY)[0, -12:].tolist()
    trace = capture_small(SUPPORTED[family], model, steps=2)
    for number in range(3):
        assert trace.views[number].next_token == want[number]
        made = model.generate(**generate_inputs(trace, model, number), max_new_tokens=11 - number, **GREEDY)
        assert made[0, number - 11 :].tolist() == want[number + 1 :]


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba", "jamba", "t5"])
def test_generate_takes_more_text(family: str) -> None:
    model, more = build(family), [9, 8, 7]
    trace = capture_small(SUPPORTED[family], model, steps=0)
    cache = to_cache(trace, model)
    logits = feed(ModelAdapter(model), cache, more, last_only=True)[-1]
    want = [int(logits.argmax())]
    for _ in range(3):
        want.append(int(feed(ModelAdapter(model), cache, want[-1:])[-1].argmax()))
    inputs = generate_inputs(trace, model, append=more)
    assert model.generate(**inputs, max_new_tokens=4, **GREEDY)[0, -4:].tolist() == want


def test_generate_would_put_a_start_token_in_front() -> None:
    model = build("bart")
    with pytest.raises(UsageError, match="was not begun with its start token 2"):
        generate_inputs(capture(model, PROMPT[:9], decoder_input_ids=PROMPT, steps=0), model)


def test_generate_needs_a_token_to_go_on_with() -> None:
    model = models.llama()
    cache, _ = prefill(ModelAdapter(model), [1, 2, 3], chunk=8)
    with pytest.raises(UsageError, match="chose no next token"):
        generate_inputs(from_cache(cache, model, [1, 2, 3]), model)


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba", "deepseek_v32"])
def test_several_tokens_mean_the_same_as_one_by_one(family: str) -> None:
    model = build(family)
    trace = capture_small(SUPPORTED[family], model, steps=0)
    one, other = to_cache(trace, model), to_cache(trace, model)
    together = feed(ModelAdapter(model), one, PROMPT[:6])
    assert torch.equal(together, torch.cat([feed(ModelAdapter(model), other, [token]) for token in PROMPT[:6]]))
    assert caches.identical(one, other)


@pytest.mark.parametrize("family", ["llama", "gemma3", "jamba", "falcon_h1", "lfm2", "mamba", "deepseek_v32", "t5"])
def test_branches_and_repeats(family: str) -> None:
    model = build(family)
    cache = to_cache(capture_small(SUPPORTED[family], model, steps=0), model)
    kept, other = branch(cache), branch(cache)
    feed(ModelAdapter(model), other, [5])
    assert caches.identical(cache, kept)
    assert not caches.identical(cache, other)
    three = repeat(cache, 3)
    ids = torch.tensor([[5], [6], [7]])
    together = feed(ModelAdapter(model), three, ids)
    assert caches.identical(cache, kept)
    for row, token in enumerate((5, 6, 7)):
        alone = feed(ModelAdapter(model), branch(cache), [token])
        assert torch.allclose(together[row], alone, atol=1e-4)


def test_a_restored_cache_can_be_cropped() -> None:
    model = models.llama()
    trace = capture(model, models.prompt(20), steps=3)
    cache = to_cache(trace, model)
    cache.crop(-3)
    assert caches.identical(cache, to_cache(trace, model, 0))


def test_beams_are_a_batch(tmp_path: Path) -> None:
    model = models.llama()
    found = model.generate(
        torch.tensor([PROMPT]),
        num_beams=3,
        max_new_tokens=6,
        return_dict_in_generate=True,
        **(GREEDY | {"num_return_sequences": 3}),
    )
    cache = models.cache_in(found)
    seen = cache.get_seq_length()
    fed = torch.randint(3, 99, (3, seen))  # which tokens the beams hold is their scorer's to know
    trace = from_cache(cache, model, fed, next_tokens=[1, 2, 3])
    save(trace, tmp_path / "t.tsc")
    back = load(tmp_path / "t.tsc")
    assert caches.identical(to_cache(back, model), cache)
    assert back.sequence(1).token_ids() == fed[1].tolist()


# Caches that others made


@torch.no_grad()
def run(model: Any, cache: Any, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), **models.given(model, cache)).logits[0, -1]


@pytest.mark.parametrize("length", [5, 40])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "falcon_h1", "deepseek_v32"])
def test_static_caches(family: str, length: int, tmp_path: Path) -> None:
    model, tokens = build(family), PROMPT[:length]
    static = StaticCache(config=model.config, max_cache_len=64)
    token = int(run(model, static, tokens).argmax())
    save(from_cache(static, model, tokens, next_tokens=[token]), tmp_path / "t.tsc")
    trace = load(tmp_path / "t.tsc")
    rows = {spec.kind: trace.views[0].rows(number) for number, spec in enumerate(trace.geometry.layers)}
    assert rows.get("full", length) == length  # not 64
    assert rows.get("sliding", min(length, 7)) == min(length, 7)
    again = to_cache(trace, model, into=StaticCache(config=model.config, max_cache_len=64))
    dynamic = to_cache(trace, model)
    for step in range(6):
        exact = run(model, static, [token])
        assert torch.equal(run(model, again, [token]), exact), step
        if family != "deepseek_v32":  # its indexer chooses among unfilled rows, too
            assert torch.allclose(run(model, dynamic, [token]), exact, atol=1e-4), step
        token = int(exact.argmax())


def test_a_static_cache_to_fill_must_fit() -> None:
    model = models.llama()
    trace = capture(model, models.prompt(20), steps=0)
    with pytest.raises(MismatchError, match="room for 16 tokens, the file has 20"):
        to_cache(trace, model, into=StaticCache(config=model.config, max_cache_len=16))
    used = to_cache(trace, model)
    with pytest.raises(MismatchError, match="not empty"):
        to_cache(trace, model, into=used)
    sliding = models.mistral_sliding()
    trace = capture(sliding, models.prompt(20), steps=0)
    with pytest.raises(MismatchError, match="layer 0 of the cache to fill is full, in the file sliding"):
        to_cache(trace, sliding, into=DynamicCache(config=models.llama().config))
    with pytest.raises(MismatchError, match="the file has 3 layers, the cache to fill 0"):
        to_cache(trace, sliding, into=DynamicCache())


def test_a_cache_to_fill_must_keep_what_the_model_keeps() -> None:
    sample = SUPPORTED["mistral-sliding"]
    model = sample.build(torch.float32)
    trace = capture(model, PROMPT, steps=0)
    for into in (
        StaticCache(config=model.config, max_cache_len=5),
        DynamicCache(config=replace(sample, config=sample.config | {"sliding_window": 4}).build(torch.float32).config),
    ):
        with pytest.raises(MismatchError, match=r"of the cache to fill keeps \d tokens, the model's window is 8"):
            to_cache(trace, model, into=into)
    bart = build("bart")
    captured = capture_small(SUPPORTED["bart"], bart, steps=0)

    def static(room: int, encoded: int) -> EncoderDecoderCache:
        config = bart.get_decoder().config
        return EncoderDecoderCache(
            StaticCache(config=config, max_cache_len=room), StaticCache(config=config, max_cache_len=encoded)
        )

    for room, encoded, message in ((64, 64, "room for 64 tokens, the file has 23"), (16, 23, "has 40")):
        with pytest.raises(MismatchError, match=message):
            to_cache(captured, bart, into=static(room, encoded))
    filled = to_cache(captured, bart, into=static(64, 23))
    assert torch.allclose(
        feed(ModelAdapter(bart), filled, [5]), feed(ModelAdapter(bart), to_cache(captured, bart), [5]), atol=1e-5
    )
    for use in (branch, lambda cache: repeat(cache, 2)):
        with pytest.raises(UnsupportedCacheError, match="a StaticLayer is written in place"):
            use(filled)


def recording(model: Any) -> Any:
    """An empty cache that keeps what it would let go of otherwise, as assisted decoding has it."""
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    return cache


@pytest.mark.parametrize("family", ["mistral-sliding", "gemma3", "gemma3n", "lfm2"])
def test_a_cache_of_prompt_lookup_decoding_goes_on(family: str, tmp_path: Path) -> None:
    """It looks candidates up in the prompt, and crops the cache by those that were wrong."""
    model, repetitive = build(family), PROMPT[:10] * 4
    found = model.generate(
        torch.tensor([repetitive]),
        prompt_lookup_num_tokens=3,
        max_new_tokens=24,
        return_dict_in_generate=True,
        **GREEDY,
    )
    cache, fed = models.cache_in(found), found.sequences[:, :-1]
    assert any(getattr(layer, "record_past", False) for layer in cache.layers)
    save(from_cache(cache, model, fed, next_tokens=found.sequences[:, -1]), tmp_path / "t.tsc")
    back = load(tmp_path / "t.tsc")
    last = int(found.sequences[0, -1])
    exact = run(model, branch(cache), [last])
    assert torch.equal(run(model, to_cache(back, model), [last]), exact)
    inputs = generate_inputs(back, model)
    made = model.generate(**inputs, max_new_tokens=12, **GREEDY)
    # the live one goes on token by token as well
    for token in made[0, found.sequences.shape[1] :].tolist():
        logits = run(model, cache, [last])
        assert int(logits.argmax()) == token
        last = token


@pytest.mark.parametrize("family", ["mistral-sliding", "gemma3", "lfm2"])
def test_of_a_cache_that_records_its_past_the_end_is_taken(family: str) -> None:
    model = build(family)
    cache, plain = recording(model), DynamicCache(config=model.config)
    for tokens in (PROMPT[:30], PROMPT[30:33], PROMPT[33:]):
        run(model, cache, tokens)
        run(model, plain, tokens)
    back = to_cache(from_cache(cache, model, PROMPT), model)
    assert [layer.keys.shape[2] for layer in back.layers if hasattr(layer, "keys")] == [
        layer.keys.shape[2] for layer in plain.layers if hasattr(layer, "keys")
    ]
    assert torch.allclose(run(model, back, [9]), run(model, plain, [9]), atol=1e-5)


@pytest.mark.parametrize("family", ["mistral-sliding", "gemma3", "lfm2"])
def test_a_cache_that_was_cropped_beyond_its_record_is_refused(family: str) -> None:
    model = build(family)
    cache = recording(model)
    run(model, cache, PROMPT)
    cache.crop(-2)  # what it needs is there
    from_cache(cache, model, PROMPT[:-2])
    cache.crop(-2)  # and no more
    with pytest.raises(UnsupportedCacheError, match="cropped beyond what it had recorded") as caught:
        from_cache(cache, model, PROMPT[:-4])
    assert "capture(model, input_ids" in caught.value.hint


def test_recurrent_states_that_may_have_been_cropped_are_refused() -> None:
    model = build("qwen3_next")
    cache = recording(model)
    run(model, cache, PROMPT)
    with pytest.raises(UnsupportedCacheError, match="which its recurrent states do not follow"):
        from_cache(cache, model, PROMPT)


def test_layers_that_have_seen_different_tokens_are_refused() -> None:
    model = build("gemma3")
    cache = DynamicCache(config=model.config)
    run(model, cache, PROMPT)
    cache.layers[0].cumulative_length -= 1
    with pytest.raises(UnsupportedCacheError, match=f"layer 0 has seen {len(PROMPT) - 1} tokens"):
        from_cache(cache, model, PROMPT)


@pytest.mark.parametrize("ids", [[1.5, 2.0], "abc", [[1, 2], [3]], None, [[[1]]]], ids=repr)
def test_what_is_no_token_ids_is_refused(ids: Any) -> None:
    with pytest.raises(UsageError, match="token ids are"):
        capture(models.llama(), ids)


def test_a_batch_takes_as_many_more_texts_as_it_has() -> None:
    model, (ids, mask) = build("llama"), batch()
    trace = capture(model, ids, attention_mask=mask, steps=0)
    with pytest.raises(UsageError, match="2 sequences to append to 4"):
        generate_inputs(trace, model, append=[[1], [2]])
    with pytest.raises(UsageError, match="the model has no token 120"):
        generate_inputs(trace, model, append=[120])
    assert generate_inputs(trace, model, append=[7])["input_ids"][:, -1].tolist() == [7] * 4


def test_encoders_are_asked_for_what_they_are_fed() -> None:
    with pytest.raises(UsageError, match="is fed input_features"):
        capture(build("whisper"), PROMPT)
    with pytest.raises(UsageError, match="is fed input_ids"):
        capture(build("bart"), input_features=torch.zeros(1, 8, 60))
    bart = build("bart")
    with pytest.raises(UsageError, match=r"do not fit into the [0-9]+ positions of the model"):
        capture(bart, [5] * (bart.config.max_position_embeddings + 1))


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(torch.float32).min])
def test_the_drill_looks_at_what_the_model_may_say(fill: float) -> None:
    model = models.llama()
    head = model.lm_head.forward

    def masked(hidden: torch.Tensor) -> torch.Tensor:
        logits = head(hidden)
        logits[..., 3] = fill
        return logits

    model.lm_head.forward = masked
    self_test.require_restorable(ModelAdapter(model))
    stateful = keeping_state(models.llama())
    head = stateful.lm_head.forward
    stateful.lm_head.forward = masked
    with pytest.raises(UnsupportedCacheError, match="keeps a part of its state elsewhere"):
        self_test.require_restorable(ModelAdapter(stateful))


@pytest.mark.skipif(
    "Fp8QuantizedLayer" not in {kind.__name__ for kind in cache_layers.LAYER_CLASSES},
    reason=f"transformers {transformers.__version__} has no fp8 cache",
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_quantized_caches_are_dequantized(family: str) -> None:
    model = build(family)
    quantized = QuantizedCache("fp8", model.config)
    run(model, quantized, PROMPT)
    token = int(run(model, quantized, [9]).argmax())
    with pytest.warns(UserWarning, match="Fp8QuantizedLayer are stored dequantized"):
        trace = from_cache(quantized, model, [*PROMPT, 9], next_tokens=[token])
    assert trace.info["dequantized"] == "Fp8QuantizedLayer"
    assert quantized.get_seq_length() == 41
    with pytest.warns(UserWarning, match="dequantized"):
        again = from_cache(quantized, model, [*PROMPT, 9])  # looking does not change it
    for name in ("keys", "values"):
        assert all(map(torch.equal, getattr(trace.snapshot(), name), getattr(again.snapshot(), name)))
    error = (run(model, to_cache(trace, model), [token]) - run(model, quantized, [token])).abs().max()
    assert float(error) < 0.05  # it goes on in full precision


def test_caches_of_another_kind_are_refused_by_name() -> None:
    model = models.mistral_sliding()
    plain = DynamicCache()  # without the config every layer keeps all rows
    run(model, plain, PROMPT)
    with pytest.raises(UnsupportedCacheError, match="layer 0 of the cache is full, that of MistralForCausalLM sliding"):
        from_cache(plain, model, PROMPT)
    short = StaticCache(config=model.config, max_cache_len=8)
    run(model, short, PROMPT[:6])
    with pytest.raises(UnsupportedCacheError, match="keeps 8 tokens, the model's window is 16"):
        from_cache(short, model, PROMPT[:6])
    full = models.llama()
    cache, _ = prefill(ModelAdapter(full), PROMPT, chunk=64)
    for ids, message in (
        ([*PROMPT[:-1], 300], "the model has no token 300"),
        (PROMPT[:-1], "has seen 40 tokens, input_ids has 39"),
        ([PROMPT, PROMPT], "holds 1 sequences, input_ids has 2"),
    ):
        with pytest.raises(UsageError, match=message):
            from_cache(cache, full, ids)
    with pytest.raises(UsageError, match="2 next tokens for 1 sequences"):
        from_cache(cache, full, PROMPT, next_tokens=[1, 2])
    with pytest.raises(UnsupportedCacheError, match="the cache has 2 layers, that of LlamaForCausalLM 3"):
        from_cache(prefill(ModelAdapter(models.llama(layers=2)), PROMPT, chunk=64)[0], full, PROMPT)

    class Own(DynamicCache):
        pass

    with pytest.raises(UnsupportedCacheError, match="a Own cannot be stored"):
        from_cache(Own(config=full.config), full, PROMPT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_tuples(family: str) -> None:
    model = build(family)
    cache = to_cache(capture_small(SUPPORTED[family], model, steps=0), model)
    tuples = to_tuples(cache)
    assert len(tuples) == 2
    assert {len(layer) for layer in tuples} == {4 if family == "t5" else 2}
    back = from_tuples(tuples, model)
    assert type(back) is type(cache)
    assert caches.identical(back, cache)
    assert torch.equal(feed(ModelAdapter(model), branch(back), [5]), feed(ModelAdapter(model), branch(cache), [5]))
    with pytest.raises(UsageError, match="the model has"):
        from_tuples(tuples[:1], model)
    with pytest.raises(UsageError, match="layer 0: keys and values of"):
        from_tuples([(layer[0][0], *layer[1:]) for layer in tuples], model)


@pytest.mark.parametrize("family", ["gemma3", "jamba", "deepseek_v32"])
def test_tuples_that_would_not_be_all(family: str) -> None:
    model = build(family)
    cache = to_cache(capture_small(SUPPORTED[family], model, steps=0), model)
    with pytest.raises(UnsupportedCacheError, match="tuples hold keys and values of every token only"):
        to_tuples(cache)
    with pytest.raises(UnsupportedCacheError, match="keeps more than keys and values"):
        from_tuples([(torch.zeros(1, 1, 3, 4),) * 2] * len(cache.layers), model)


# The drill


def keeping_state(model: Any) -> Any:
    """The model with an attention that carries something of its own from pass to pass."""
    attention = model.model.layers[1].self_attn
    plain = attention.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        out, weights = plain(*arguments, **named)
        before = getattr(attention, "carried", torch.zeros_like(out[:, -1]))
        attention.carried = 0.5 * before + out[:, -1]
        return out + 0.1 * before[:, None], weights

    attention.forward = forward
    return model


def test_a_model_that_keeps_state_elsewhere_is_refused() -> None:
    model = keeping_state(models.llama())
    cache, _ = prefill(ModelAdapter(model), PROMPT, chunk=64)
    for job in (lambda: capture(model, models.prompt(20), steps=1), lambda: from_cache(cache, model, PROMPT)):
        with pytest.raises(UnsupportedCacheError, match="LlamaForCausalLM cannot be captured: restored, its cache"):
            job()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_the_drill_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    self_test.require_restorable(ModelAdapter(model))
    monkeypatch.setattr(model, "forward", model.forward)  # to be put back
    models.must_not_run(model)
    self_test.require_restorable(ModelAdapter(model))


def test_a_model_that_keeps_state_in_its_modules_is_found_without_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsc_cli.model_families.families.refusal_of", lambda model_type: None)
    model = REFUSED["recurrent_gemma"].build(torch.float32)
    with pytest.raises(UnsupportedCacheError, match="RecurrentGemmaForCausalLM"):
        capture(model, PROMPT, steps=1)


@pytest.mark.parametrize(
    ("of", "into", "message"),
    [
        ("llama", "mistral-sliding", r"layer 0 is full in the file and sliding \(8\) in the model"),
        ("mistral-sliding", "llama", r"layer 0 is sliding \(8\) in the file and full in the model"),
        ("qwen2", "qwen3", "layer 0 has key size 16 in the file and 24 in the model"),
        ("llama", "gpt2", "layer 0 has heads 2 in the file and 4 in the model"),
        ("bamba", "jamba", "layer 0 has states"),
        ("llama", "deepseek_v32", "layer 0 has heads 2 in the file and 1 in the model"),
        ("jamba", "llama", "layer 0 is none in the file and full in the model"),
        ("gemma3n", "llama", "the file has 3 layers, the model 2"),
        ("gpt2", "llama", "layer 0 has heads 4 in the file and 2 in the model"),
        ("llama", "gemma4", "the file has 2 layers, the model 4"),
    ],
)
def test_not_even_force_restores_into_another_kind_of_cache(of: str, into: str, message: str) -> None:
    trace = capture_small(SUPPORTED[of], build(of), steps=0)
    with pytest.raises(MismatchError, match=message):
        to_cache(trace, build(into), allow_model_mismatch=True)


def test_encoders_are_fed_alike(tmp_path: Path) -> None:
    model = build("whisper")
    given = inputs_of(SUPPORTED["whisper"])
    save(capture(model, **given, steps=1), tmp_path / "t.tsc")
    trace = load(tmp_path / "t.tsc")
    assert trace.info["encoder"] == "input_features"
    with pytest.raises(UsageError, match="does not hold what the encoder was fed"):
        verify(trace, model, options=VerifyOptions(positions=4, greedy=0))
    verified = verify(trace, model, options=VerifyOptions(positions=4, greedy=0), against=trace)
    assert verified.identical
    assert isinstance(to_cache(trace, model), EncoderDecoderCache)
    text = build("bart")
    start = capture(text, PROMPT[:9], steps=1)
    assert start.token_ids(0) == [text.config.decoder_start_token_id]
    assert verify(start, text, options=VerifyOptions(positions=4, greedy=2)).identical
