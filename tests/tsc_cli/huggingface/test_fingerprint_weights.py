"""What a fingerprint reads of a model in memory: packed weights, rotary modules at rest, dropout, virtual tokens."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from enum import Enum
from typing import Any

import pytest
import torch
import transformers

from formats.errors import UnsupportedCacheError, UsageError
from tests.support import models
from tests.support.families import SUPPORTED
from tsc_cli import capture, to_cache
from tsc_cli.huggingface.fingerprint import config_fields, fingerprint
from tsc_cli.huggingface.fingerprint.rope_buffers import frequencies_of, name_of_difference


def test_the_hash_of_plain_weights_is_that_of_the_files_there_are() -> None:
    model = models.llama()
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        head = f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode()
        digest = hashlib.sha256(head + tensor.contiguous().numpy().tobytes()).digest()
        whole.update(len(digest).to_bytes(8, "little") + digest)
    assert fingerprint.weights_of(model) == whole.hexdigest()


def packed(change: float = 1.0) -> Any:
    """A Llama whose linear layers torch.ao has packed, after a weight was changed."""
    model = models.llama()
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight[0] *= change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def test_weights_that_torch_packs_are_hashed() -> None:
    assert fingerprint.weights_of(packed()) == fingerprint.weights_of(packed())
    assert fingerprint.weights_of(packed(0.5)) != fingerprint.weights_of(packed())


def test_packed_weights_exchanged_in_place_are_noticed() -> None:
    model, other = packed(), packed(0.5)
    before = fingerprint.weights_of(model)
    layer = model.model.layers[0].self_attn.k_proj
    layer.set_weight_bias(*other.model.layers[0].self_attn.k_proj._weight_bias())  # noqa: SLF001
    assert fingerprint.weights_of(model) == fingerprint.weights_of(other) != before


class Layout(Enum):
    ROWS = 1


class Wrapped(torch.Tensor):
    """Codes and a scale behind one tensor, as torchao's are."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scale: torch.Tensor, context: Any) -> Any:
        del scale, context
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # noqa: SLF001

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, context: Any) -> None:
        self.codes, self.scale, self.context = codes, scale, context

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scale"], self.context

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(function)


def wrapped(codes: int = 3, scale: float = 0.5, context: Any = (Layout.ROWS, torch.int8, 64)) -> torch.nn.Module:
    module = torch.nn.Module()
    tensor = Wrapped(torch.full((2, 4), codes, dtype=torch.int8), torch.tensor([scale]), context)
    module.weight = torch.nn.Parameter(tensor, requires_grad=False)
    return module


def test_tensors_made_of_tensors_are_hashed_by_their_parts() -> None:
    same = fingerprint.weights_of(wrapped())
    assert fingerprint.weights_of(wrapped()) == same
    changes: list[dict[str, Any]] = [{"codes": 4}, {"scale": 0.25}, {"context": (Layout.ROWS, torch.int8, 32)}]
    assert len({same, *(fingerprint.weights_of(wrapped(**change)) for change in changes)}) == 4
    module = wrapped()
    assert fingerprint.weights_of(module) == same
    module.weight.scale[0] = 0.25  # type: ignore[union-attr, index]
    assert fingerprint.weights_of(module) == fingerprint.weights_of(wrapped(scale=0.25))


def test_weights_quantized_as_bitsandbytes_does_are_hashed() -> None:
    """Codes are plain bytes, and `state_dict` makes what belongs to them anew each time."""

    class Quantized(torch.nn.Linear):
        def __init__(self, blocks: list[float]) -> None:
            super().__init__(4, 4, bias=False)
            self.weight = torch.nn.Parameter(torch.arange(8, dtype=torch.uint8)[:, None], requires_grad=False)
            self.blocks, self.kind = torch.tensor(blocks), {"quant_type": "nf4", "blocksize": 64}

        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[f"{prefix}weight.absmax"] = self.blocks * 1
            described = torch.tensor(list(json.dumps(self.kind).encode()), dtype=torch.uint8)
            destination[f"{prefix}weight.quant_state.bitsandbytes__nf4"] = described

    model = torch.nn.Sequential(Quantized([1.0, 2.0]))
    before = fingerprint.weights_of(model)
    assert fingerprint.weights_of(torch.nn.Sequential(Quantized([1.0, 2.0]))) == before
    model[0].blocks[1] = 3.0
    assert fingerprint.weights_of(model) == fingerprint.weights_of(torch.nn.Sequential(Quantized([1.0, 3.0]))) != before


def test_a_parameter_that_was_exchanged_is_noticed_wherever_it_lies() -> None:
    model = models.llama()
    seen = {fingerprint.weights_of(model)}
    for value in range(20):  # memory of the one before is given out again
        model.lm_head.weight = None
        model.lm_head.weight = torch.nn.Parameter(torch.full((300, 48), float(value)))
        seen.add(fingerprint.weights_of(model))
    assert len(seen) == 21


class Stateful(torch.nn.Module):
    def get_extra_state(self) -> Any:
        return object()


@pytest.mark.parametrize("what", ["meta", "unknown", "context"])
def test_weights_that_cannot_be_hashed_are_refused_by_name(what: str) -> None:
    model: torch.nn.Module = models.llama()
    if what == "meta":
        name, kind = "lm_head.weight", "not in memory"
        model.lm_head = torch.nn.Linear(48, 300, bias=False, device="meta")
    elif what == "unknown":
        name, kind = "lm_head._extra_state", "of type object"
        model.lm_head = Stateful()
    else:
        model = wrapped(context=object())
        name, kind = "weight.context", "of type object"
    with pytest.raises(UnsupportedCacheError, match=f"the weight {name} is {kind}, which cannot be hashed"):
        fingerprint.weights_of(model)


def rope_model(rope_type: str) -> Any:
    settings = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 2.0}
    return (
        models.phi3_long()
        if rope_type == "longrope"
        else models.llama(rope_parameters=settings, max_position_embeddings=32)
    )


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rates_that_change_while_a_model_runs_are_the_same_at_rest(rope_type: str) -> None:
    model = rope_model(rope_type)
    rotary, fresh = model.model.rotary_emb, frequencies_of(model)
    began = rotary.inv_freq.clone()
    model(torch.tensor([models.prompt(50)]))
    assert not torch.equal(rotary.inv_freq, began)
    assert frequencies_of(model) == fresh
    model(torch.tensor([models.prompt(5)]))
    assert frequencies_of(model) == fresh
    rotary.original_inv_freq.mul_(1.01)
    rotary.inv_freq.mul_(1.01)
    assert name_of_difference(fresh, frequencies_of(model)) == "model.rotary_emb.inv_freq"


def test_each_kind_of_layer_has_rates_of_its_own() -> None:
    model = SUPPORTED["gemma3"].build(torch.float32)
    fresh = frequencies_of(model)
    assert len(json.loads(fresh)) == 2
    model.model.rotary_emb.sliding_attention_inv_freq[3] *= 1.001
    assert name_of_difference(fresh, frequencies_of(model)) == "model.rotary_emb.sliding_attention_inv_freq"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        "{",
        '{"a": 1}',
        '{"model.rotary_emb.inv_freq": [6, "x", null, []]}',
        "[" * 60000,
        '{"a": [NaN]}',
        '{"model.rotary_emb.inv_freq": [6.0, 1e999, NaN, 1' + "0" * 400 + "]}",
    ],
)
def test_nonsense_in_a_file_is_a_difference(said: str) -> None:
    model = models.llama()
    recorded = dict(fingerprint.of(model)) | {"rope_frequencies": said}
    assert str(fingerprint.difference(recorded, fingerprint.of(model))).startswith("rope_frequencies: ")
    for field in ("rope", "adapters", "config"):
        differs = fingerprint.difference(
            recorded | {"config_fields": said, field: said or "x", "rope_frequencies": frequencies_of(model)},
            fingerprint.of(model),
        )
        assert str(differs).startswith(field)


# what is recorded


def test_the_named_fields_decide_nothing() -> None:
    """Defaults may be others in the next transformers."""
    model = models.llama()
    trace = capture(model, models.prompt(9), steps=0)
    trace.fingerprint["config_fields"] = '{"rms_norm_eps":1}'
    to_cache(trace, model)
    trace.fingerprint["config_fields"] = "nonsense"
    to_cache(trace, model)
    trace.fingerprint["config"] = "0" * 64
    with pytest.raises(Exception, match=r"config is 0{12}[.]{3} in the file"):
        to_cache(trace, model)


def test_a_file_says_little_of_a_config() -> None:
    config = transformers.LlamaConfig(
        vocab_size=128256,
        intermediate_size=14336,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    said = config_fields.changed_fields(model, config_fields.meaningful(model))
    assert len(said) <= 500
    assert json.loads(said)["rope_parameters.rope_type"] == "llama3"


def test_positions_that_begin_behind_the_padding_id_depend_on_it() -> None:
    def model(padding: int) -> Any:
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        return transformers.RobertaForCausalLM(
            transformers.RobertaConfig(**sizes, vocab_size=40, is_decoder=True, pad_token_id=padding)
        ).eval()

    one, other = fingerprint.of(model(1)), fingerprint.of(model(2))
    assert one["config"] != other["config"]
    assert fingerprint.difference(one, other) == "config.pad_token_id is the default (1) in the file and 2 here"


def test_another_kernel_is_said_and_not_refused() -> None:
    model = models.llama()
    recorded = fingerprint.of(model)
    assert fingerprint.differences_in_rounding(recorded, recorded) is None
    assert fingerprint.differences_in_rounding({}, recorded) is None
    model.set_attn_implementation("eager")
    said = fingerprint.differences_in_rounding(recorded, fingerprint.of(model))
    assert str(said).startswith("computed attention by sdpa at capture and by eager here: the same cache")


# what cannot be captured


def test_a_model_that_drops_out_is_refused_before_it_runs() -> None:
    model = models.llama(attention_dropout=0.25).train()
    with pytest.raises(UsageError, match=r"training mode.*attention_dropout 0.25") as caught:
        capture(models.must_not_run(model), models.prompt(9), steps=0)
    assert caught.value.hint == "model.eval()"
    capture(models.llama(attention_dropout=0.25), models.prompt(9), steps=0)
    capture(models.llama().train(), models.prompt(9), steps=0)  # nothing to drop
    partly = models.gpt2()
    partly.transformer.h[1].mlp.train()
    with pytest.raises(UsageError, match="training mode"):
        capture(partly, models.prompt(9), steps=0)


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "PROMPT_TUNING"])
def test_virtual_tokens_are_refused(kind: str) -> None:
    model = models.llama()
    config = type("PromptConfig", (), {"is_prompt_learning": True, "num_virtual_tokens": 8, "peft_type": kind})()
    model.peft_config, model.active_adapters = {"p": config}, lambda: ["p"]
    with pytest.raises(UnsupportedCacheError, match=f"adapter 'p' is {kind}"):
        capture(models.must_not_run(model), models.prompt(9), steps=0)
    with pytest.raises(UnsupportedCacheError, match="virtual tokens"):
        fingerprint.of(model)


def test_a_comparison_keeps_what_a_file_does_not() -> None:
    found = fingerprint.of(models.llama())
    assert json.loads(json.dumps(found)) == dict(found) == found
    assert copy.copy(found.settings)["rms_norm_eps"] == 1e-6
