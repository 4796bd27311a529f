"""The token that a run chose last and did not feed is fed first when the session goes on, as the unbroken run does."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from formats import load, save
from formats.errors import UsageError
from tests.support import models
from tests.support.families import PROMPT, SUPPORTED
from tests.tsc_cli.huggingface.test_foreign import batch
from tsc_cli import capture, from_cache, generate_inputs, to_cache, verify_snapshots
from tsc_cli.huggingface import caches
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed, prefill
from tsc_cli.session.append import append
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.session.replay import Feed, feeds_of
from tsc_cli.session.resume import resume
from tsc_cli.verification.recompute import recompute
from tsc_cli.verification.verify import VerifyOptions

TURN = [9, 8, 7, 6, 5]
STEPS = 5


def unbroken(model: Any, chunk: int) -> tuple[list[int], list[torch.Tensor], Any]:
    """(tokens, logits from the second turn on, cache) of a run of two turns that nothing interrupts."""
    cache, logits = prefill(ModelAdapter(model), PROMPT, chunk=chunk)
    tokens = list(PROMPT)
    for _ in range(STEPS + 1):  # the last one that was decoded is fed, too
        tokens.append(int(logits.argmax()))
        logits = feed(ModelAdapter(model), cache, tokens[-1:], last_only=True)[-1]
    tokens += TURN
    seen = [feed(ModelAdapter(model), cache, TURN, last_only=True)[-1]]
    for _ in range(STEPS):
        tokens.append(int(seen[-1].argmax()))
        seen.append(feed(ModelAdapter(model), cache, tokens[-1:], last_only=True)[-1])
    return tokens, seen, cache


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mistral-sliding", "qwen3_next", "jamba", "mamba"])
def test_a_session_of_two_turns_is_the_unbroken_run(family: str, tmp_path: Path) -> None:
    sample, path = SUPPORTED[family], tmp_path / "t.tsc"
    model = sample.build(torch.float32)
    tokens, logits, live = unbroken(model, sample.chunk)
    first = capture(model, PROMPT, options=CaptureOptions(steps=STEPS, chunk=sample.chunk))
    assert first.pending == (tokens[len(PROMPT) + STEPS],)
    save(first, path)
    done = append(model, TURN, path, steps=STEPS)
    session = load(path)
    assert (session.token_ids(), done.new_tokens) == (tokens, 1 + len(TURN) + STEPS)
    assert session.pending == (int(logits[-1].argmax()),)
    assert caches.identical(to_cache(session, model), live)
    for number in range(STEPS):  # after the turn, and after each step
        after = feed(
            ModelAdapter(model),
            to_cache(session, model, STEPS + 1 + number),
            tokens[number - STEPS :][:1],
            last_only=True,
        )
        assert torch.equal(after[-1], logits[number + 1])
    assert feeds_of(session) == [Feed(40, sample.chunk), Feed(STEPS + 1, 1), Feed(5, 1024), Feed(STEPS, 1)]
    results = verify_snapshots(session, model, range(len(session)), options=VerifyOptions(positions=3, greedy=2))
    assert all(one.identical and one.fidelity.kl_mean == 0 for one in results)
    found = recompute(session, model)
    assert not found.lies
    assert all(one.identical == one.tensors for one in found.snapshots)
    assert list(islice(resume(first, model, prompt=TURN), STEPS)) == tokens[-STEPS:]


@pytest.mark.parametrize("snapshot", [0, 2, -1])
def test_an_earlier_snapshot_goes_on_with_its_own_token(snapshot: int) -> None:
    model = SUPPORTED["llama"].build(torch.float32)
    trace = capture(model, PROMPT, steps=STEPS)
    number = trace.index(snapshot)
    cache = to_cache(trace, model, snapshot)
    chosen = trace.pending_at(snapshot)
    if number:
        assert chosen == trace.views[number].next_tokens
        feed(ModelAdapter(model), cache, list(chosen))
    else:  # the prompt alone: nothing was generated, and what would come next is a guess
        assert chosen == ()
        assert trace.views[0].next_tokens
    logits = feed(ModelAdapter(model), cache, TURN, last_only=True)[-1]
    assert next(iter(resume(trace, model, snapshot=snapshot, prompt=TURN))) == int(logits.argmax())
    given = generate_inputs(trace, model, snapshot, append=TURN)
    assert given["input_ids"].tolist() == [[*trace.token_ids(snapshot), *chosen, *TURN]]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "mamba"])
def test_generate_goes_on_as_if_it_had_never_stopped(family: str) -> None:
    """In one process: `generate` is handed its own live cache and all tokens, or what comes out of a trace."""
    model = SUPPORTED[family].build(torch.float32)
    settings: Any = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    first = model.generate(torch.tensor([PROMPT]), max_new_tokens=4, **settings)
    trace = from_cache(first.past_key_values, model, first.sequences[:, :-1], next_tokens=first.sequences[:, -1])
    assert trace.pending == (int(first.sequences[0, -1]),)
    cache, _ = prefill(ModelAdapter(model), first.sequences[0, :-1].tolist(), chunk=64)
    want = [int(feed(ModelAdapter(model), cache, [*trace.pending, *TURN], last_only=True)[-1].argmax())]
    for _ in range(5):
        want.append(int(feed(ModelAdapter(model), cache, want[-1:], last_only=True)[-1].argmax()))
    again = model.generate(**generate_inputs(trace, model, append=[TURN]), max_new_tokens=6, **settings)
    assert again.sequences[0, -6:].tolist() == want


def test_each_sequence_of_a_batch_has_its_own() -> None:
    model = SUPPORTED["llama"].build(torch.float32)
    ids, mask = batch()
    trace = capture(model, ids, attention_mask=mask, steps=3)
    assert len(trace.pending) == len(ids)
    assert [trace.sequence(number).pending for number in range(len(ids))] == [(one,) for one in trace.pending]
    given = generate_inputs(trace, model, append=[TURN])
    pending = torch.tensor(trace.pending)[:, None]
    assert torch.equal(given["input_ids"][:, -6:], torch.cat([pending, torch.tensor([TURN] * len(ids))], 1))
    assert given["attention_mask"].shape == given["input_ids"].shape
    cache = to_cache(trace, model)
    padding = trace.geometry.padding
    want = feed(ModelAdapter(model), cache, given["input_ids"][:, -6:], padding=padding, last_only=True)[:, -1].argmax(
        -1
    )
    made = model.generate(**given, max_new_tokens=1, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made[:, -1].tolist() == want.tolist()


def test_a_trace_without_one_goes_on_with_the_prompt_alone(tmp_path: Path) -> None:
    model, path = models.llama(), tmp_path / "t.tsc"
    cache, _ = prefill(ModelAdapter(model), PROMPT, chunk=64)
    trace = from_cache(cache, model, PROMPT)
    assert trace.pending == ()
    save(trace, path)
    assert append(model, TURN, path, steps=0).new_tokens == len(TURN)
    assert load(path).token_ids() == [*PROMPT, *TURN]
    assert generate_inputs(trace, model, append=TURN)["input_ids"].tolist() == [[*PROMPT, *TURN]]
    with pytest.raises(UsageError, match="chose no next token"):
        generate_inputs(trace, model)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
def test_text_behind_text_has_no_guess_between(family: str, tmp_path: Path) -> None:
    sample, path = SUPPORTED[family], tmp_path / "t.tsc"
    model = sample.build(torch.float32)
    trace = capture(model, PROMPT, options=CaptureOptions(steps=0, chunk=sample.chunk))
    assert (trace.pending, len(trace.views[0].next_tokens)) == ((), 1)
    save(trace, path)
    assert next(resume(trace, model)) == trace.views[0].next_token
    if family != "mamba":  # of which `generate` takes the last token alone
        assert generate_inputs(trace, model, append=TURN)["input_ids"].tolist() == [[*PROMPT, *TURN]]
    for turn in (TURN, [1, 2, 3]):
        append(model, turn, path, steps=0)
    session = load(path)
    assert session.token_ids() == [*PROMPT, *TURN, 1, 2, 3]
    assert session.text_ends == (40, 45, 48)
    append(model, [], path, steps=2)  # goes on by itself: now there is a token that was generated and not fed
    assert (load(path).text_ends, load(path).pending) == ((40, 45, 48), load(path).views[-1].next_tokens)
    append(model, TURN, path, steps=0)
    after = load(path)
    assert after.token_ids()[48:] == [session.views[-1].next_token, *after.token_ids()[49:51], *TURN]
    assert after.text_ends == (40, 45, 48, 56)
    assert not recompute(after, model).lies


def test_an_end_of_text_token_is_fed_as_any_other(tmp_path: Path) -> None:
    model, path = SUPPORTED["llama"].build(torch.float32), tmp_path / "t.tsc"
    cache, _ = prefill(ModelAdapter(model), PROMPT, chunk=64)
    end = model.config.eos_token_id
    save(from_cache(cache, model, PROMPT, next_tokens=[end]), path)
    append(model, TURN, path, steps=0)
    assert load(path).token_ids() == [*PROMPT, end, *TURN]


def test_a_token_that_the_model_does_not_have_is_none_to_go_on_with() -> None:
    model = models.llama()
    cache, _ = prefill(ModelAdapter(model), PROMPT, chunk=64)
    with pytest.raises(UsageError, match="no token 300"):
        from_cache(cache, model, PROMPT, next_tokens=[300])


def test_the_commands(tsc: Any, tmp_path: Path) -> None:
    folder, path = models.save_small_model(tmp_path / "model"), tmp_path / "t.tsc"
    assert tsc("capture", "Once upon a time", "-m", folder, "--steps", 3, "-o", path).code == 0
    before = load(path)
    resumed = tsc("resume", path, " and then", "-m", folder, "-n", 4, "--ignore-eos", "--json").json["tokens"]
    assert tsc("capture", "--append", path, " and then", "-m", folder, "--steps", 4, "-q").code == 0
    turn = [*before.pending, *models.byte_tokenizer()(" and then")["input_ids"]]
    assert load(path).token_ids()[len(before.token_ids()) :] == [*turn, *resumed]
    assert tsc("verify", path, "-m", folder, "--recompute", "--positions", 4, "--greedy", 2).code == 0
