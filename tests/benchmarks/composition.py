"""Quantized weights and compressed caches: `python -m tests.benchmarks.composition [--gguf FILE] [--text FILE]`.

Three things of the default model: its Q4_1 GGUF file and the float32 folder are one model to a file of its cache; the
bytes of weights and caches, which add up; and whether a compressed cache costs more where the weights were quantized
further: the linear layers' weights rounded to int8 or 4 bits in place, each such model with an exact cache of its own.
1,024 tokens of each of three windows of the text, KL over the 256 tokens that follow, the default model's installed
profile for all.  Without --text it is Python's own reference documentation, which calibration without texts has seen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from formats.codecs.klt import profile_store
from formats.encode.recipe import Recipe
from formats.encode.source import Source
from formats.errors import MismatchError
from tsc_cli import capture, load, save, to_cache
from tsc_cli.calibration.texts import library_texts, windows
from tsc_cli.compression.compressor import Compressor
from tsc_cli.huggingface import caches as bridge
from tsc_cli.huggingface.adapter import ModelAdapter
from tsc_cli.huggingface.fingerprint import fingerprint
from tsc_cli.huggingface.generation import score
from tsc_cli.huggingface.models import loading
from tsc_cli.model_store import default_model, default_source
from tsc_cli.progress import no_stage
from tsc_cli.scoring.fidelity import Fidelity, compare
from tsc_cli.scoring.scorer import scratch_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from formats.codecs.klt.profile import Profile

CONTEXT, POSITIONS, WINDOWS = 1024, 256, 3
RATIOS = (63, 125)  # of one float32 cache, codec klt
SCALARS = (8, 4)  # bits
CACHES = (1, 16, 256)  # beside one set of weights
HEAD = "| weights | file of the cache | of fp32 | KL of the cache | same top-1 | KL of weights and cache |"


def int8(weights: torch.Tensor) -> torch.Tensor:
    """(out, in) rounded to 8 bits, symmetric, one scale a row; 8 bits a weight and 32 a row."""
    scale = weights.abs().amax(1, keepdim=True) / 127
    return (weights / scale).round() * scale


def q4_0(weights: torch.Tensor) -> torch.Tensor:
    """(out, in) rounded as GGUF's Q4_0 does: 4 bits, a float16 scale for 32 neighbours of a row; 4.5 bits a weight."""
    blocks = weights.reshape(-1, 32)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = extreme / -8
    codes = torch.where(scale == 0, 8.0, (blocks / scale + 8.5).floor()).clamp(0, 15)
    return ((codes - 8) * scale.half().float()).reshape(weights.shape)


MODELS: dict[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
    "Q4_1, as it comes": None,
    "rounded to int8": int8,
    "rounded to Q4_0": q4_0,
}


@torch.no_grad()
def rounded(model: PreTrainedModel, how: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
    for layer in model.modules():
        if how is not None and isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings():
            layer.weight.copy_(how(layer.weight))


def loaded(name: str | None) -> Any:
    return loading.load(name, dtype="float32", device="cpu", say=lambda text: None)


def one_model(gguf: Path, tokens: Sequence[int], folder: Path) -> None:
    """The GGUF file and the float32 folder, which it was converted to."""
    small, twin = loaded(str(gguf)), loaded(None)
    ours, theirs = (fingerprint.of(one.model, one.tokenizer) for one in (small, twin))
    print(f"fields of the fingerprint that differ: {[key for key in ours if ours[key] != theirs.get(key)] or 'none'}")
    path = folder / "one.tsc"
    save(capture(small.model, tokens[:CONTEXT], steps=0, tokenizer=small.tokenizer), path)
    caches = [to_cache(load(path), one.model, tokenizer=one.tokenizer) for one in (small, twin)]
    logits = [
        score(ModelAdapter(one.model), cache, tokens[CONTEXT:])
        for one, cache in zip((small, twin), caches, strict=True)
    ]
    print(f"one file restored in both: tensors {'bit-identical' if bridge.identical(*caches) else 'DIFFER'}, ", end="")
    print(f"logits of {POSITIONS} positions {'equal' if torch.equal(*logits) else 'DIFFER'}")


class Measuring:
    """Files of caches of one model after another, each window's float32 predictions of the first model kept."""

    def __init__(self, texts: list[list[int]], profile: Profile | None) -> None:
        self._texts, self._profile = texts, profile
        self._first: list[torch.Tensor] = []
        self.bytes: dict[str, list[int]] = {}

    def rows(self, name: str, model: PreTrainedModel) -> None:
        found: dict[str, list[tuple[float, Fidelity, Fidelity]]] = {}
        for number, tokens in enumerate(self._texts):
            trace = capture(model, tokens[:CONTEXT], steps=0)
            source, fed, targets = Source(trace), tokens[CONTEXT:-1], tokens[CONTEXT + 1 :]
            exact = score(ModelAdapter(model), bridge.to_cache(trace, model, allow_model_mismatch=True), fed)
            if number == len(self._first):  # the first model
                self._first.append(exact)
            whole = compare(self._first[number], exact, targets)
            found.setdefault("exact", []).append((1.0, compare(exact, exact, targets), whole))
            for label, recipe in self._recipes(source):
                with scratch_file(source, recipe) as restored:
                    logits = score(
                        ModelAdapter(model), bridge.to_cache(restored, model, allow_model_mismatch=True), fed
                    )
                    size = restored.stored_bytes or 0
                pair = compare(exact, logits, targets), compare(self._first[number], logits, targets)
                found.setdefault(label, []).append((trace.raw_bytes / size, *pair))
                self.bytes.setdefault(label, []).append(size)
            self.bytes.setdefault("raw", []).append(trace.raw_bytes)
        for label, points in found.items():
            ratios, own, of_first = zip(*points, strict=True)
            cells = [
                name,
                label,
                f"{statistics.mean(ratios):.2f}x",
                spread([one.kl_mean for one in own]),
                f"{statistics.mean(one.top1 for one in own):.4f}",
                spread([one.kl_mean for one in of_first]),
            ]
            print(f"| {' | '.join(cells)} |", flush=True)

    def _recipes(self, source: Source) -> list[tuple[str, Recipe]]:
        found = [(f"scalar, {bits} bits", Recipe("scalar", {"bits": bits})) for bits in SCALARS]
        if self._profile is None:
            return found
        compressor = Compressor(source, None, profile=self._profile)
        raw, _ = source.captured_bytes
        return found + [(f"klt, {ratio}x", compressor.klt_within(raw / ratio, 0.01)) for ratio in RATIOS]


def spread(values: Sequence[float]) -> str:
    """Mean and standard error."""
    return f"{statistics.mean(values):.2g} ± {statistics.stdev(values) / len(values) ** 0.5:.1g}"


def sums(gguf: Path, sizes: dict[str, list[int]]) -> None:
    """Bytes of weights and of so many caches: everything in float32 over both of them compressed."""
    raw = statistics.mean(sizes["raw"])
    plain = (default_model.ensure(print) / "model.safetensors").stat().st_size
    small = gguf.stat().st_size
    print(f"\nweights: {plain:,} bytes in float32, {small:,} as GGUF, {plain / small:.2f}x; a cache: {raw:,.0f}")
    print("\n| caches | all float32 | weights Q4_1 | caches compressed | both | smaller in all |\n|" + " --- |" * 6)
    for label in (f"klt, {ratio}x" for ratio in RATIOS):
        for count in CACHES if label in sizes else ():
            cache = statistics.mean(sizes[label])
            all_of = [weights + count * one for one in (raw, cache) for weights in (plain, small)]
            cells = [f"{one / 1e6:,.1f} MB" for one in all_of]
            print(f"| {count}, {label} | {' | '.join(cells)} | {all_of[0] / all_of[3]:.2f}x |")


def main(gguf: Path | None, text: Path | None, folder: Path) -> None:
    gguf = gguf or default_source.fetch(folder, print, no_stage)
    tokenizer = loaded(None).tokenizer
    content = library_texts()[0][0] if text is None else text.read_text("utf-8")
    texts = windows([tokenizer(content).input_ids], WINDOWS, CONTEXT + POSITIONS + 1)
    one_model(gguf, texts[0][: CONTEXT + POSITIONS], folder)
    trace, measuring = None, None
    print(f"\n{HEAD}\n|{' --- |' * 6}")
    refusals = []
    for name, how in MODELS.items():
        model = loaded(None).model
        rounded(model, how)
        own = capture(model, texts[0][:16], steps=0)
        if trace is None or measuring is None:
            trace, measuring = own, Measuring(texts, profile_store.for_model(own.fingerprint))
        else:
            for file, other in ((trace, model), (own, loaded(None).model)):
                try:
                    to_cache(file, other)
                    refusals.append(f"{name}: NOT REFUSED")
                except MismatchError as error:
                    refusals.append(f"{name}: {error.message}")
        measuring.rows(name, model)
    sums(gguf, measuring.bytes if measuring else {})
    print("\n" + "\n".join(refusals))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--text", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        main(given.gguf, given.text, Path(scratch))
