"""Versions of transformers: names that changed, classes that one lacks, fields of a config that one knows alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_outputs import CausalLMOutputWithPast

import formats
import tsc_cli
from formats.errors import MismatchError, UnsupportedCacheError
from formats.trace.geometry import LayerSpec
from tests import ROOT, smoke
from tests.support import models
from tests.support.families import PROMPT, SUPPORTED
from tsc_cli import capture, verify
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import config_versions, fingerprint
from tsc_cli.huggingface.generation import Sampler, continue_from
from tsc_cli.huggingface.restore import restore
from tsc_cli.session.resume import resume
from tsc_cli.verification.verify import VerifyOptions


class Own(torch.nn.Module):
    """A model whose code came with a checkpoint: it calls its cache what the transformers of its time did."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.generation_config = inner, inner.config, inner.generation_config

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def pass_of(self, input_ids: torch.Tensor, cache: Any) -> Any:
        return self.inner(input_ids=input_ids, **models.given(self.inner, cache)).logits


class Today(Own):
    def forward(self, input_ids: torch.Tensor, cache: Any = None, use_cache: bool = True) -> Any:
        return SimpleNamespace(logits=self.pass_of(input_ids, cache), cache=cache)


class Yesterday(Own):
    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        return SimpleNamespace(logits=self.pass_of(input_ids, past_key_values), past_key_values=past_key_values)


class AsOutput(Own):
    """It makes an output of transformers', which takes either name in the version that renamed it."""

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        found = {models.cache_name(CausalLMOutputWithPast): past_key_values}
        return CausalLMOutputWithPast(logits=self.pass_of(input_ids, past_key_values), **found)


@pytest.mark.parametrize("kind", [Today, Yesterday, AsOutput])
def test_the_models_own_signature_names_its_cache(kind: Any) -> None:
    plain, model = models.llama(), kind(models.llama())
    trace, exact = capture(model, models.prompt(20), steps=3), capture(plain, models.prompt(20), steps=3)
    assert trace.token_ids() == exact.token_ids()
    assert list(islice(resume(trace, model), 5)) == list(islice(resume(exact, plain), 5))
    assert verify(trace, model, options=VerifyOptions(positions=8)).identical


def test_a_model_that_returns_another_cache_is_refused() -> None:
    class Copies(Own):
        def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
            return SimpleNamespace(logits=self.pass_of(input_ids, past_key_values), past_key_values=[1])

    class Silent(Own):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return SimpleNamespace(logits=self.pass_of(input_ids, None))

    with pytest.raises(UnsupportedCacheError, match="keeps its cache as list"):
        capture(Copies(models.llama()), [1, 2, 3])
    with pytest.raises(UnsupportedCacheError, match="does not take a cache"):
        capture(Silent(models.llama()), [1, 2, 3])


def test_generate_is_asked_by_the_name_that_it_knows() -> None:
    """A warning, as of a name that it no longer knows, is an error here."""
    model = SUPPORTED["mamba"].build(torch.float32)
    assert ModelAdapter(model).generate_argument in ("cache", "cache_params")
    for one in (models.llama(), model):
        assert models.cache_name(one.forward) == ModelAdapter(one).cache_argument


MISSING = """
import transformers.cache_utils as found
from tests.support import models
hidden = {{name: vars(found).pop(name) for name in {names!r} if hasattr(found, name)}}
from tsc_cli import capture, to_cache
from tsc_cli.huggingface import cache_layers
vars(found).update(hidden)  # transformers itself needs them
assert set({names!r}).isdisjoint(kind.__name__ for kind in cache_layers.LAYER_CLASSES)
trace = capture(models.llama(), models.prompt(20), steps=1)
to_cache(trace, models.llama())
"""


@pytest.mark.parametrize(
    "names",
    [
        ("Fp8QuantizedLayer", "DummyLayer"),
        pytest.param(("DummyLayer",), marks=pytest.mark.full),
        pytest.param(("StaticIndexedLayer", "HQQQuantizedLayer"), marks=pytest.mark.full),
    ],
    ids="+".join,
)
def test_a_version_without_a_cache_class_captures(names: tuple[str, ...]) -> None:
    code = MISSING.format(names=names)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_error_inside_of_an_import_is_not_called_a_missing_name() -> None:
    code = "import transformers.cache_utils as c; del c.DynamicLayer\nfrom tsc_cli import capture"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "DynamicLayer" in last
    assert "cannot import name 'capture'" not in last
    code = "import formats.container.records as r; del r.Part\nfrom formats import load"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Part" in done.stderr.strip().splitlines()[-1]
    for package in (formats, tsc_cli):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing


# What another version says of the same config


def seen_by(model: Any, **changes: Any) -> dict[str, str]:
    """The fingerprint of a model as a version would give it whose configs have other fields: None takes one away.

    `name=value` is a field at its default; `name=(value, default)` one that is not.
    """
    found = fingerprint.of(model)
    settings, usual = dict(found.settings), dict(found.usual)
    for name, value in changes.items():
        name = name.replace("__", ".")
        settings.pop(name, None)
        usual.pop(name, None)
        if value is not None:
            settings[name], usual[name] = value if isinstance(value, tuple) else (value, value)
    changed = {name: value for name, value in settings.items() if name not in usual or usual[name] != value}
    return dict(found) | {
        "config": fingerprint.config_fields.hash_of(settings),
        "config_fields": json.dumps({name: fingerprint.config_fields.shown(value) for name, value in changed.items()}),
        "config_usual": config_versions.usual_fields(settings, usual),
    }


def test_a_field_that_one_version_knows_alone_and_has_at_its_default_changes_nothing() -> None:
    model = models.llama()
    own = fingerprint.of(model)
    for other in (
        seen_by(model, new_thing=7),
        seen_by(model, new_thing=None, pretraining_tp=None),
        seen_by(model, new_list=[1, 2, 3]),
        seen_by(model, attention_bias=None),
    ):
        assert other["config"] != own["config"]
        fingerprint.require_same(other, own)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"new_thing": (7, 8)}, "new_thing"),  # set, and unknown here
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),  # another default: the same config file, another model
        ({"attention_bias": (True, False)}, "attention_bias"),
        ({"head_dim": None}, "head_dim"),  # set here, and unknown there
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_field_that_means_something_is_a_difference(changes: dict[str, Any], named: str) -> None:
    model = models.llama(head_dim=20)
    with pytest.raises(MismatchError, match="the file belongs to another model: config") as caught:
        fingerprint.require_same(seen_by(model, **changes), fingerprint.of(model))
    assert named in str(caught.value) or "config is" in str(caught.value)


def test_what_moved_into_the_rope_settings_is_no_difference() -> None:
    model = models.llama(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
    own = fingerprint.of(model)
    fingerprint.require_same(seen_by(model, partial_rotary_factor=(0.5, 1.0)), own)
    with pytest.raises(MismatchError):
        fingerprint.require_same(seen_by(model, partial_rotary_factor=(0.25, 1.0)), own)


def test_a_file_without_its_defaults_is_held_to_the_hash() -> None:
    model = models.llama()
    for text in (None, "", "0", "not base 85 \x00", "AAAAA"):
        other = seen_by(model, new_thing=7)
        other.pop("config_usual")
        if text is not None:
            other["config_usual"] = text
        if text == "":
            other["config_fields"] = ""
        with pytest.raises(MismatchError, match="config"):
            fingerprint.require_same(other, fingerprint.of(model))


def test_a_file_of_another_version_says_so() -> None:
    trace = capture(models.llama(), models.prompt(9), steps=0)
    assert trace.fingerprint["transformers"] == transformers.__version__
    assert fingerprint.another_version(trace.fingerprint) is None
    other = dict(trace.fingerprint) | {"transformers": "5.3.1"}
    assert "captured with transformers 5.3.1, run with" in str(fingerprint.another_version(other))
    fingerprint.require_same(other, trace.fingerprint)


def test_layers_that_only_one_version_has_are_no_difference() -> None:
    """Gemma-3n's last layers share rows: they have an empty layer of their own from 5.23 on, and none before."""
    sample = SUPPORTED["gemma3n"]
    model = sample.build(torch.float32)
    trace = capture(model, PROMPT, steps=2)
    want = list(islice(resume(trace, model), 5))
    layers = trace.geometry.layers
    held = tuple(spec for spec in layers if spec.kind != "none")
    for specs in (held, layers, (*held, LayerSpec("none"), LayerSpec("none"), LayerSpec("none"))):
        cache = restore(trace.snapshot(), ModelAdapter(model), specs)
        assert list(islice(continue_from(ModelAdapter(model), cache, want[0], Sampler()), 5)) == want
    with pytest.raises(MismatchError, match="layers, the model"):
        restore(trace.snapshot(), ModelAdapter(model), held[:-1])


def test_the_ranges_have_floors() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    oldest = smoke.requirements(project, "2.13.0", oldest=True)
    assert all("==" in line for line in oldest)
    assert "torch==2.13.0" in oldest
    assert "transformers==5.19.0" in oldest
    ranges = {
        *project["dependencies"],
        *(line for name in smoke.EXTRAS for line in project["optional-dependencies"][name]),
    }
    assert set(smoke.requirements(project, "2.13.0", oldest=False)) - ranges == {"torch==2.13.0"}
    assert {"matplotlib==3.9.0", "gguf==0.17.0", "cryptography==44.0.0"} <= set(oldest)
