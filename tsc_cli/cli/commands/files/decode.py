"""`tsc decode`: the exact tensors of a snapshot, for any program that reads safetensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from formats.errors import UnsupportedFileError, UsageError
from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import File, KeyFile, Overwrite, Snapshot
from tsc_cli.cli.output import Output
from tsc_cli.text_format import printable, size

if TYPE_CHECKING:
    import torch

    from formats import Snapshot as Moment
    from formats import Trace


@with_groups
def command(
    *,
    file: File,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="OUT.safetensors", help="The file to write; - is stdout.", show_default=False
        ),
    ],
    snapshot: Snapshot = -1,
    layers: Annotated[str, typer.Option("--layers", metavar="LIST", help="Such as 0-3,7.")] = "all",
    key_file: KeyFile = None,
    overwrite: Overwrite = False,
    out: Output,
) -> None:
    """Write a snapshot's tensors as a safetensors file.

    Tensors: layers.N.keys and layers.N.values, (batch, KV heads, rows, head size) with RoPE as
    cached; layers.N.indexer_keys, (batch, 1, rows, index size), and states such as layers.N.conv.0,
    where layers have them; layers.N.positions, the position id of each row (heads by rows where
    heads hold different tokens); token_ids, all tokens fed so far.
    """
    import json

    from formats import load
    from tsc_cli.cli.files import check_output, numbers, open_output
    from tsc_cli.cli.keys import Keys

    if output != "-" and not output.endswith(".safetensors"):
        raise UsageError("only safetensors files are written", path=output, hint="name it OUT.safetensors")
    check_output(output, overwrite=overwrite, read=(key_file,))
    trace = load(file, Keys(key_file).source)
    snapshot_number = trace.index(snapshot)
    layer_numbers = numbers(layers, len(trace.geometry.layers), "layer")
    if trace.secret is not None:
        out.note("the tensors are not encrypted, and the text can be reconstructed from them")
    with out.progress("decoding"):
        moment = trace.snapshot(snapshot_number, layers=layer_numbers)
    from formats.container.safetensors_buffer import pack

    metadata = {
        "schema": "tsc.decode/1",
        "snapshot": str(snapshot_number),
        "dtype": trace.geometry.dtype,
        "next_token": "" if moment.next_token is None else str(moment.next_token),
        "layers": json.dumps(layer_numbers),
        "tier": trace.tier,
        "lost_by": trace.lost_by,
        "fingerprint": json.dumps(trace.fingerprint, sort_keys=True),
    }
    data = pack(_tensors(trace, snapshot_number, moment, layer_numbers), metadata)
    with open_output(output, overwrite=overwrite) as sink:
        sink.write(data)
    if output != "-":
        facts = {"path": output, "snapshot": snapshot_number, "layers": layer_numbers, "file_bytes": len(data)}
        counts = f"snapshot {snapshot_number}, {len(layer_numbers)} layers, {len(moment.token_ids)} tokens"
        text = f"{printable(output)}: {counts}, {size(len(data))}"
        out.report("tsc.decode/1", facts, text, output)


def _tensors(trace: Trace, snapshot_number: int, moment: Moment, layer_numbers: list[int]) -> dict[str, torch.Tensor]:
    import torch

    history, width = trace.views[snapshot_number].history, trace.labels.width
    ids = [trace.labels.tokens(history, sequence) for sequence in range(width)]
    tensors = {"token_ids": torch.tensor(ids if width > 1 else ids[0], dtype=torch.int64)}
    if trace.geometry.padding:
        tensors["padding"] = torch.tensor(trace.geometry.padding, dtype=torch.int64)
    for slot, layer in enumerate(layer_numbers):
        if trace.geometry.layers[layer].parts:
            tensors[f"layers.{layer}.keys"] = moment.keys[slot]
            tensors[f"layers.{layer}.values"] = moment.values[slot]
            tensors[f"layers.{layer}.positions"] = moment.row_positions[slot].contiguous()
        indexer = moment.indexer_keys[slot]
        if indexer is not None:
            tensors[f"layers.{layer}.indexer_keys"] = indexer
        for name, state in moment.states[slot].items():
            title = f"layers.{layer}.{name}"
            if title in tensors:  # one of the two would be lost
                raise UnsupportedFileError(f"layer {layer} has a state with the name of its rows, {name!r}")
            tensors[title] = state.contiguous()
    return tensors
