"""A cache ends where the model's positions end, and is not carried across a point where its keys would turn anew."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
import transformers

from formats.errors import UnsupportedCacheError, UsageError
from tests.support import models
from tests.support.traces import same_snapshots
from tsc_cli import capture, to_cache, verify, verify_snapshots
from tsc_cli.huggingface.positions import Positions
from tsc_cli.session.decode_loop import CaptureOptions
from tsc_cli.session.resume import resume
from tsc_cli.verification.verify import VerifyOptions


def test_learned_positions_bound_what_is_measured() -> None:
    model = models.gpt2(positions=48)
    trace = capture(model, models.prompt(36), steps=4, reference=models.prompt(120, seed=3))
    first, last = verify_snapshots(trace, model, (0, -1), options=VerifyOptions(positions=100, greedy=64, recall=True))
    assert (first.fidelity.positions, last.fidelity.positions) == (12, 8)
    assert (first.greedy, last.greedy) == (13, 9)  # the last token of them is not fed
    assert first.recall is not None
    assert first.recall.predicted <= 12
    full = capture(model, models.prompt(44), steps=4)
    with pytest.raises(UsageError, match="snapshot 4 takes all positions of the model"):
        verify(full, model)
    with pytest.raises(UsageError, match="48 tokens and 1 steps make 49, which do not fit"):
        list(islice(resume(full, model), 2))


def test_what_is_known_of_positions() -> None:
    learned = Positions(models.gpt2())
    assert (learned.end, learned.longrope_switch, learned.room(250)) == (256, None, 6)
    long = models.phi3_long()
    turned = Positions(long)
    assert (turned.longrope_switch, turned.reach, turned.room(30), turned.room(32)) == (32, 4096, 2, 0)
    assert (turned.room(33), turned.room(4096), turned.room(4096, beyond=True) > 1 << 60) == (4063, 0, True)


def test_a_prompt_beyond_the_switch_of_longrope_is_fed_in_one_pass() -> None:
    """In chunks, keys before the switch would turn at other rates than `generate` and one pass give them."""
    model = models.phi3_long()
    tokens = models.prompt(40)
    in_chunks = capture(model, tokens, options=CaptureOptions(steps=3, chunk=16))
    at_once = capture(model, tokens, steps=3)
    assert same_snapshots(in_chunks.snapshot(), at_once.snapshot())
    with torch.no_grad():
        exact = model(torch.tensor([tokens]), use_cache=True)
    cache = to_cache(in_chunks, model, 0)
    assert torch.equal(cache.layers[0].keys, models.cache_in(exact).layers[0].keys)
    assert verify(in_chunks, model, options=VerifyOptions(greedy=4)).identical


def test_steps_do_not_cross_the_switch_of_longrope() -> None:
    model = models.phi3_long()
    with pytest.raises(UsageError, match="30 tokens and 4 steps cross 32, where the model's LongRoPE") as refused:
        capture(model, models.prompt(30), steps=4)
    assert refused.value.hint == "at most --steps 2"
    trace = capture(model, models.prompt(30), steps=2)
    with pytest.raises(UsageError, match="32 tokens and 1 steps cross 32"):
        list(islice(resume(trace, model), 2))


@pytest.mark.parametrize("token", [300, -1])
def test_a_token_that_the_model_does_not_have(token: int) -> None:
    with pytest.raises(UsageError, match=f"no token {token}: its ids go from 0 to"):
        capture(models.llama(), [1, 2, token], steps=0)


def test_layers_of_different_dtypes_are_refused() -> None:
    model = models.llama()

    def widened(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        del module, arguments
        return output.double()

    for name in ("k_proj", "v_proj"):
        getattr(model.model.layers[1].self_attn, name).register_forward_hook(widened)
    model.model.layers[1].self_attn.q_proj.register_forward_hook(widened)
    model.model.layers[1].self_attn.o_proj.double()
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda m, a, output: output.float())
    with pytest.raises(UnsupportedCacheError, match=r"layer 1 of LlamaForCausalLM holds torch\.float64, layer 0 torch"):
        capture(model, models.prompt(9), steps=0)


def test_a_model_that_takes_no_cache_is_refused_before_it_runs() -> None:
    config = transformers.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4)
    model = models.must_not_run(transformers.OpenAIGPTLMHeadModel(config).eval())
    with pytest.raises(
        UnsupportedCacheError, match="OpenAIGPTLMHeadModel does not take a cache that was filled before"
    ):
        capture(model, models.prompt(9), steps=0)
