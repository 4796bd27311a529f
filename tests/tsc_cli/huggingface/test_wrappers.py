"""Models that something is wrapped around are looked through at every door; what is done in place stays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from formats.encode.recipe import Recipe
from formats.errors import UnsupportedCacheError
from tests.support import models
from tsc_cli import (
    append,
    calibrate,
    capture,
    compress,
    from_cache,
    from_tuples,
    generate_inputs,
    load,
    save,
    to_cache,
    to_tuples,
    verify,
)
from tsc_cli.calibration.effort import Effort
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.session.resume import resume
from tsc_cli.verification.recompute import recompute
from tsc_cli.verification.verify import VerifyOptions

PROMPT = models.prompt(24)


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compiled_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def hooked(model: Any) -> Any:
    """As accelerate leaves a model that it has dispatched."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    return add_hook_to_module(model, AlignDevicesHook(io_same_device=True))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "compiled": compiled,
    "data parallel": torch.nn.DataParallel,
    "average": torch.optim.swa_utils.AveragedModel,
    "one in another": lambda model: torch.nn.DataParallel(compiled(torch.nn.DataParallel(model))),
}
IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "compiled in place": in_place,
    "compiled forward": compiled_forward,
    "hooked": hooked,
}


@pytest.fixture
def fresh_compiler() -> Any:
    """Compiled code is kept by code object, and at most eight variants of each: tests do not share them."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapped_model_is_the_model(kind: str) -> None:
    """Files go from one to the other, both ways, and snapshots are the same bit for bit."""
    plain, wrapped = models.gemma3_mixed(), WRAPPERS[kind](models.gemma3_mixed())
    assert fingerprint.of(wrapped) == fingerprint.of(plain)
    ours, theirs = capture(plain, PROMPT, steps=2), capture(wrapped, PROMPT, steps=2)
    assert verify(theirs, plain, options=VerifyOptions(positions=8, greedy=4)).identical
    assert verify(ours, wrapped, options=VerifyOptions(positions=8, greedy=4)).identical
    want = list(islice(resume(ours, plain), 6))
    assert list(islice(resume(ours, wrapped), 6)) == want
    made = plain.generate(**generate_inputs(ours, wrapped), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert made[0, -6:].tolist() == want


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full if kind == "compiled in place" else ()) for kind in IN_PLACE]
)
def test_a_model_that_was_changed_in_place_is_run_as_it_is(kind: str, fresh_compiler: None) -> None:
    """Compiled code may round otherwise."""
    plain, changed = models.llama(layers=1), IN_PLACE[kind](models.llama(layers=1))  # compiling takes seconds a layer
    assert fingerprint.of(changed) == fingerprint.of(plain)
    trace = capture(changed, PROMPT, steps=2)
    assert trace.token_ids() == capture(plain, PROMPT, steps=2).token_ids()
    assert verify(trace, plain, options=VerifyOptions(positions=8, greedy=4)).fidelity.kl_mean < 1e-9
    assert list(islice(resume(trace, changed), 4)) == list(islice(resume(trace, plain), 4))


def test_every_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSC_CACHE", str(tmp_path / "cache"))
    plain = models.llama()
    wrapped = torch.nn.DataParallel(plain)
    trace = capture(wrapped, PROMPT, steps=2)
    cache = to_cache(trace, wrapped)
    assert len(from_cache(cache, wrapped, trace.token_ids())) == 1
    assert from_tuples(to_tuples(cache), wrapped).get_seq_length() == len(trace.token_ids())
    assert not recompute(trace, wrapped).lies
    save(trace, tmp_path / "t.tsc")
    assert append(wrapped, [1, 2], tmp_path / "t.tsc", steps=1).new_snapshots == 2
    compress(load(tmp_path / "t.tsc"), tmp_path / "s.tsc", recipe=Recipe("scalar", {"bits": 8}), model=wrapped)
    texts = [models.prompt(200, seed) for seed in range(4)]
    effort = Effort(tokens=300, rank=64, held_out=1, curve=1)
    profile = calibrate(
        torch.nn.DataParallel(models.llama(max_position_embeddings=96)), None, texts=texts, effort=effort
    )
    assert profile.fingerprint["weights"] == fingerprint.of(plain)["weights"]


@pytest.mark.parametrize(
    "given",
    [torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.DataParallel(torch.nn.Linear(2, 2)), "llama", None],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_model_is_refused_by_name(given: Any) -> None:
    with pytest.raises(UnsupportedCacheError, match=f"a {type(given).__name__}.* was given where") as caught:
        capture(given, PROMPT)
    assert caught.value.hint == "give the model that is inside of it"


# peft need not be installed: its wrappers are tried where it is


def lora(model: Any, alpha: int = 16, seed: int = 1) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": alpha, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(**settings, task_type="CAUSAL_LM")).eval()


def test_an_adapter_in_pefts_wrapper_is_part_of_the_model() -> None:
    wrapped = lora(models.llama())
    trace = capture(wrapped, PROMPT, steps=3)
    assert '"lora_alpha":16' in trace.fingerprint["adapters"]
    assert verify(trace, wrapped.get_base_model(), options=VerifyOptions(positions=8, greedy=4)).identical
    assert fingerprint.difference(trace.fingerprint, fingerprint.of(lora(models.llama()))) is None
    others = {"adapters": models.llama(), "adapters.default.lora_alpha": lora(models.llama(), 8)}
    for field, other in others.items():
        assert f"{field} is" in str(fingerprint.difference(trace.fingerprint, fingerprint.of(other)))
    assert "weights is" in str(fingerprint.difference(trace.fingerprint, fingerprint.of(lora(models.llama(), seed=2))))
    with wrapped.disable_adapter():
        assert "adapters.default.disabled" in str(fingerprint.difference(trace.fingerprint, fingerprint.of(wrapped)))
    merged = wrapped.merge_and_unload()
    assert fingerprint.of(merged)["adapters"] == "none"


def test_virtual_tokens_in_pefts_wrapper_are_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    with pytest.raises(UnsupportedCacheError, match="virtual tokens"):
        capture(peft.get_peft_model(models.llama(), config).eval(), PROMPT)
