"""Are neighbouring tokens' rows alike?  `python -m tests.benchmarks.neighbours [TEXT]`.

Energy of row t minus row t - 1 over energy of row t, by layer, for keys as cached, keys with RoPE undone, and values;
and what the delta codec makes of it: steps by themselves against steps predicted from the row before.
Default model, 1,024 tokens.
"""

from __future__ import annotations

import io
import sys
from importlib.resources import files
from pathlib import Path

import torch

from formats import Recorder, Trace, TraceBuilder
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.encode.write import write
from tsc_cli.huggingface import caches, restore
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.generation import feed, prefill, score
from tsc_cli.huggingface.models import loading
from tsc_cli.scoring.fidelity import compare
from tsc_cli.scoring.scorer import scratch_file


def energies(rows: torch.Tensor) -> float:
    """Mean over heads of the energy of differences over the energy of rows, for (1, heads, rows, size)."""
    difference = rows[:, :, 1:] - rows[:, :, :-1]
    return float(difference.square().sum() / rows[:, :, 1:].square().sum())


def without_rope(model: object, keys: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(keys.shape[2])[None]
    cos, sin = model.model.rotary_emb(keys, positions)  # type: ignore[attr-defined]
    half = keys.shape[-1] // 2
    turned = torch.cat([-keys[..., half:], keys[..., :half]], -1)
    return keys * cos - turned * sin


def centred(rows: torch.Tensor) -> torch.Tensor:
    """Rows without what all rows of a head have in common."""
    return rows - rows.mean(2, keepdim=True)


def appended(model: object, tokens: list[int], prompt: int) -> Trace:
    """A trace of a text that is fed token by token behind its prompt, so that the steps are natural text."""
    cache, _ = prefill(ModelAdapter(model), tokens[:prompt], chunk=1024)  # type: ignore[arg-type]
    geometry = caches.geometry_of(cache, "model")
    builder = TraceBuilder(geometry, {})
    recorder = Recorder(builder, geometry)
    recorder.snapshot(tokens[:prompt], caches.rows_of(cache), [tokens[prompt]])
    for at in range(prompt, len(tokens)):
        feed(ModelAdapter(model), cache, tokens[at : at + 1])  # type: ignore[arg-type]
        recorder.snapshot(tokens[at : at + 1], caches.rows_of(cache))
    recorder.finish()
    return builder.trace


@torch.no_grad()
def main(path: str | None) -> None:
    loaded = loading.load(None, device="cpu", say=print)
    model = loaded.model
    text = Path(path).read_text("utf-8") if path else files("tsc_cli").joinpath("demo.txt").read_text("utf-8")
    ids = loaded.tokenizer(text).input_ids
    trace = appended(model, ids[:1024], 960)
    moment = trace.snapshot(-1)
    bare = [without_rope(model, k) for k in moment.keys]
    columns = {
        "keys as cached": [energies(k) for k in moment.keys],
        "keys without RoPE": [energies(k) for k in bare],
        "keys without RoPE, centred": [energies(centred(k)) for k in bare],
        "values": [energies(v) for v in moment.values],
        "values, centred": [energies(centred(v)) for v in moment.values],
    }
    for name, found in columns.items():
        inside = sorted(found)
        print(f"{name}: {inside[0]:.2f} to {inside[-1]:.2f} over the layers, median {inside[len(inside) // 2]:.2f}")
    source = Source(trace)
    exact = restore.to_cache(trace, model, -1, allow_model_mismatch=True)
    tokens = ids[1024 : 1024 + 257]
    logits = score(ModelAdapter(model), exact, tokens[:-1])
    for label, settings in (
        ("steps by themselves", {}),
        ("steps from the row before", {"prefer_append_for_growing": False}),
    ):
        recipe = Recipe("delta", {"bits": 4, "max_delta_error": 9.0, **settings})
        sink = io.BytesIO()
        write(source, recipe, sink)
        with scratch_file(source, recipe) as small:
            kl = compare(
                logits, score(ModelAdapter(model), restore.to_cache(small, model), tokens[:-1]), tokens[1:]
            ).kl_mean
            error = step_error(trace, small)
            print(f"{label}: {len(sink.getvalue())} bytes, error of the steps' rows {error:.4f}, KL {kl:.2g}")


def step_error(exact: Trace, small: Trace) -> float:
    """Relative squared error of the rows that the steps appended."""
    a, b = exact.snapshot(-1), small.snapshot(-1)
    pairs = list(zip([*a.keys, *a.values], [*b.keys, *b.values], strict=True))
    found = [float((x - y)[:, :, 960:].square().sum() / x[:, :, 960:].square().sum()) for x, y in pairs]
    return sum(found) / len(found)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
