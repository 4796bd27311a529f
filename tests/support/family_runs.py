"""What `test_families` does with a family: the run that is not interrupted, and in another process
the resumed ones.

`python -m tests.support.family_runs FOLDER FAMILY.DTYPE.KIND...` captures in processes that end,
and then, in others, restores every snapshot of each file and writes, beside it, the logits that
follow.  All are forks of one that has made the models and run none: to import and to make them
costs more than a run.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from formats import Trace, load
from tests.support.families import DTYPES, PROMPT, SUPPORTED, Sample
from tests.support.models import given
from tsc_cli import capture, to_cache
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.prompts import prompt_of
from tsc_cli.session.capture import capture_to_file
from tsc_cli.session.decode_loop import CaptureOptions

STEPS = {"single": 0, "trace": 11}  # of decoding: a snapshot, and twelve
AFTER = 24  # tokens after the first snapshot and after the last
BETWEEN = 10  # after each of the others: more than the windows of 8 hold


def tokens_after(number: int, steps: int) -> int:
    """How many tokens are followed after snapshot `number` of a run with so many steps."""
    return AFTER if number in (0, steps) else BETWEEN


def inputs_of(sample: Sample) -> dict[str, Any]:
    """What the family's model is given, as `capture` takes it."""
    if not sample.encodes:
        return {"input_ids": PROMPT}
    begun = [sample.config["decoder_start_token_id"], *PROMPT[1:]]
    if sample.model_type == "whisper":
        noise = torch.randn(1, 8, 60, generator=torch.Generator().manual_seed(9))
        return {"input_features": noise, "decoder_input_ids": begun}
    return {"input_ids": PROMPT[:23], "decoder_input_ids": begun}


def capture_small(sample: Sample, model: Any, **settings: Any) -> Trace:
    """A trace of the family's prompt, with these fields of `CaptureOptions`."""
    return capture(model, **inputs_of(sample), options=CaptureOptions(chunk=sample.chunk, **settings))


def capture_family(folder: Path, family: str, dtype: str, kinds: Sequence[str]) -> None:
    """Write FAMILY.DTYPE.KIND.tsc of each kind, and the logits of the uninterrupted run; an error
    into a text.
    """
    sample = SUPPORTED[family]
    try:
        model = _model(family, dtype)
        prompt = prompt_of(ModelAdapter(model), **({"input_ids": None} | inputs_of(sample)))
        for kind in kinds:
            options = CaptureOptions(STEPS[kind], chunk=sample.chunk)
            capture_to_file(model, prompt, folder / f"{family}.{dtype}.{kind}.tsc", options=options)
        filled = _by_transformers(model)
        hidden = {"hidden": _encode(model, prompt)} if sample.encodes else {}
        tokens = prompt.ids[0].tolist()
        chunk = sample.chunk if sample.in_chunks else len(tokens)
        for start in range(0, len(tokens), chunk):
            logits = _feed(model, filled, tokens[start : start + chunk], **hidden)
        exact = _greedy(model, filled, int(logits.argmax()), max(STEPS[kind] for kind in kinds) + AFTER)
        save_file({"logits": exact}, folder / f"{family}.{dtype}.exact")
    except Exception:
        (folder / f"{family}.{dtype}.error").write_text(traceback.format_exc())


@torch.inference_mode()  # with gradients another kernel rounds differently
def _encode(model: Any, prompt: Any) -> torch.Tensor:
    given = {name: one.to(model.dtype) if one.is_floating_point() else one for name, one in prompt.encoder}
    return model.get_encoder()(**given).last_hidden_state


def _by_transformers(model: Any) -> Any:
    """An empty cache, made without the product."""
    if model.config.is_encoder_decoder:
        config = model.get_decoder().config
        return EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
    return DynamicCache(config=model.config)


def resume_file(path: Path) -> None:
    """Write FILE.resumed: `logits.SNAPSHOT`, (tokens, vocabulary), and `control.NAME`,
    (vocabulary,).

    A control is what follows the last snapshot if half of the rows of NAME, or all of a state of
    that name, is wrong.
    """
    family, dtype, _ = path.stem.split(".")
    try:
        model, trace = _model(family, dtype), load(path)
        found = {}
        for number, view in enumerate(trace.views):
            count = tokens_after(number, len(trace) - 1)
            found[f"logits.{number}"] = _greedy(model, to_cache(trace, model, number), view.next_token, count)
        for name in sorted({name for spec in trace.geometry.layers for name in _holdings(spec)}):
            damaged = to_cache(trace, model)
            for layer in _layers(damaged):
                _spoil(layer, name)
            found[f"control.{name}"] = _feed(model, damaged, [trace.views[-1].next_token])
        save_file(found, path.with_suffix(".resumed"))
    except Exception:
        path.with_suffix(".error").write_text(traceback.format_exc())


def _holdings(spec: Any) -> list[str]:
    rows = {"none": [], "cross": ["keys"]}.get(spec.kind, ["keys", "indexer_keys"] if spec.index_size else ["keys"])
    return [*rows, *(state.name for state in spec.states)]


def _layers(filled: Any) -> list[Any]:
    if isinstance(filled, EncoderDecoderCache):
        return [*filled.self_attention_cache.layers, *filled.cross_attention_cache.layers]
    return list(filled.layers)


def _spoil(layer: Any, name: str) -> None:
    if name == "keys" and getattr(layer, "keys", None) is not None:
        layer.keys[:, :, layer.keys.shape[2] // 2 :] = 0
        layer.values[:, :, layer.values.shape[2] // 2 :] = 0
    elif name == "indexer_keys":
        layer.indexer_keys[:, layer.indexer_keys.shape[1] // 2 :] = 0
    elif "." in name:
        what, number = name.split(".")
        states = getattr(layer, f"{what}_states", {})
        if states.get(int(number)) is not None:
            states[int(number)].fill_(1)


@cache
def _model(family: str, dtype: str) -> Any:
    return SUPPORTED[family].build(DTYPES[dtype])


@torch.inference_mode()
def _feed(model: Any, filled: Any, tokens: Sequence[int], hidden: torch.Tensor | None = None) -> torch.Tensor:
    """Logits after the last token, (vocabulary,)."""
    ids = torch.tensor([tokens])
    if isinstance(filled, EncoderDecoderCache):
        if hidden is None:
            rows = filled.cross_attention_cache.layers[0].keys.shape[2]
            hidden = torch.zeros(1, rows, model.config.d_model, dtype=model.dtype)
        encoded = BaseModelOutput(last_hidden_state=hidden)
        output = model(decoder_input_ids=ids, encoder_outputs=encoded, **given(model, filled))
    else:
        output = model(input_ids=ids, **given(model, filled))
    return output.logits[0, -1].clone()


def _greedy(model: Any, filled: Any, token: int, count: int) -> torch.Tensor:
    """Logits after `token` and after each that follows it, (count, vocabulary)."""
    rows = []
    for _ in range(count):
        rows.append(_feed(model, filled, [token]))
        token = int(rows[-1].argmax())
    return torch.stack(rows)


def in_forks(jobs: Sequence[Callable[[], object]]) -> None:
    """Does the jobs in two processes that are born for it."""
    pids = []
    for share in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for job in jobs[share::2]:
                    job()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]


def main(folder: Path, names: Sequence[str]) -> None:
    kinds: dict[tuple[str, str], list[str]] = {}
    for name in names:
        family, dtype, kind = name.split(".")
        kinds.setdefault((family, dtype), []).append(kind)
    for model in kinds:
        with suppress(Exception):  # capturing meets it again, and writes it down
            _model(*model)
    in_forks([partial(capture_family, folder, *model, made) for model, made in kinds.items()])
    in_forks([partial(resume_all, folder, *model, made) for model, made in kinds.items()])


def resume_all(folder: Path, family: str, dtype: str, kinds: Sequence[str]) -> None:
    """Both kinds with one model; nothing where capturing failed, which a text says already."""
    for kind in kinds:
        if (path := folder / f"{family}.{dtype}.{kind}.tsc").exists():
            resume_file(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
