"""`tsc inspect`: what a file holds, without its rows and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsc_cli.cli.option_groups import with_groups
from tsc_cli.cli.options import File, KeyFile
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns, printable, ratio, size

if TYPE_CHECKING:
    from formats.file.reader import TraceFile
    from formats.trace.geometry import LayerSpec


@with_groups
def command(
    *,
    file: File,
    layers: Annotated[bool, typer.Option("--layers", help="List the layers.")] = False,
    records: Annotated[bool, typer.Option("--records", help="List the records.")] = False,
    key_file: KeyFile = None,
    out: Output,
) -> None:
    """Show what a .tsc file holds.

    Model, snapshots, bytes by kind, ratios, measured quality.

    Reads the index and the tables, not the rows: `tsc test` checks those.
    """
    from formats.file.reader import TraceFile
    from tsc_cli.cli.keys import Keys

    opened = TraceFile(file, Keys(key_file).source)
    facts = facts_of(opened)
    if layers:
        facts["layers"] = layer_facts(opened)
    if records:
        facts["records"] = record_facts(opened)
    headline = ratio(facts["ratio_trace"])
    out.report("tsc.inspect/1", facts, _text(opened, facts), headline)


def facts_of(file: TraceFile) -> dict[str, Any]:
    """Everything that the JSON report holds, raw numbers with their unit in the key."""
    geometry, final, size_bytes = file.geometry, file.views[-1], file.size
    values = geometry.values(file.header.raw_bytes_final)
    return {
        "path": file.path,
        "file_bytes": size_bytes,
        "format": f"1.{file.reader.minor}",
        "encrypted": None if file.reader.lock is None else file.reader.lock.scheme.name.lower(),
        "tier": file.header.tier,
        "lost_by": file.lost_by or None,
        "codec": codec_of(file),
        "parameters": file.header.parameters,
        "profile": None
        if file.profile is None
        else {"digest": file.profile.digest, "embedded": file.profile.data is not None},
        "created_by": file.header.created_by,
        "dtype": geometry.dtype,
        "batch": geometry.batch,
        "padding": list(geometry.padding),
        "layer_count": len(geometry.layers),
        "snapshots": len(file.views),
        "tokens_first": file.views[0].tokens_seen,
        "tokens_final": final.tokens_seen,
        "rows_stored": len(file.labels),
        "reference_tokens": len(file.reference),
        "keyframes": keyframes(file),
        "bytes_by_kind": bytes_by_kind(file),
        "raw_bytes_trace": file.header.raw_bytes_trace,
        "raw_bytes_final": file.header.raw_bytes_final,
        "raw_bytes_final_fp32": values * 4,
        "raw_bytes_final_fp16": values * 2,
        "ratio_trace": file.header.raw_bytes_trace / size_bytes,
        "ratio_final": file.header.raw_bytes_final / size_bytes,
        "ratio_final_fp32": values * 4 / size_bytes,
        "ratio_final_fp16": values * 2 / size_bytes,
        "bits_per_value_final": size_bytes * 8 / values,
        "capture": file.header.capture,
        "fingerprint": file.fingerprint,
        "quality": file.header.quality,
    }


def codec_of(file: TraceFile) -> str:
    """As the header states it; a file that states none holds exact rows."""
    return file.header.codec or "lossless"


def bytes_by_kind(file: TraceFile) -> dict[str, int]:
    """Every byte of the file under one heading; they add up to its length."""
    from formats.container.records import RECORD_BYTES, SUPERBLOCK_BYTES, Part, RecordType

    kinds = dict.fromkeys(
        (
            "keys",
            "values",
            "joint_rows",
            "labels",
            "views",
            "states",
            "indexer_keys",
            "reference",
            "attention",
            "kept",
            "profile",
            "header",
            "other",
        ),
        0,
    )
    rows = {Part.JOINT: "joint_rows", Part.KEYS: "keys", Part.VALUES: "values", Part.INDEXER: "indexer_keys"}
    names: dict[int, str] = {
        RecordType.LABELS: "labels",
        RecordType.VIEWS: "views",
        RecordType.REFERENCE: "reference",
        RecordType.MODEL: "header",
        RecordType.HEADER: "header",
        RecordType.ATTENTION: "attention",
        RecordType.KEPT: "kept",
        RecordType.PROFILE: "profile",
        RecordType.STATES: "states",
    }
    for _, entry in file.entries:
        is_rows = entry.type == RecordType.ROWS
        kind = rows[Part(entry.part)] if is_rows else names.get(entry.type, "other")
        kinds[kind] += entry.stored + RECORD_BYTES
    return kinds | {"index": file.size - SUPERBLOCK_BYTES - sum(kinds.values()), "superblock": SUPERBLOCK_BYTES}


def keyframes(file: TraceFile) -> list[int]:
    """The snapshots none of whose rows an earlier one names."""
    numbers, highest = [], -1
    for number, view in enumerate(file.views):
        spans = [span for layer in set(view.layers) for span in layer]
        if all(span.first > highest for span in spans):
            numbers.append(number)
        highest = max([highest, *(span.stop - 1 for span in spans)])
    return numbers


def layer_facts(file: TraceFile) -> list[dict[str, Any]]:
    final = file.views[-1]
    return [
        {
            "layer": layer,
            "kind": spec.kind,
            "window": spec.window,
            "kv_heads": spec.heads,
            "key_size": spec.key_size,
            "value_size": spec.value_size,
            "index_size": spec.index_size,
            "state_bytes": file.geometry.state_bytes[layer],
            "rows_final": final.rows(layer),
            "raw_bytes_final": final.rows(layer) * file.geometry.row_bytes[layer] + file.geometry.state_bytes[layer],
        }
        for layer, spec in enumerate(file.geometry.layers)
    ]


def record_facts(file: TraceFile) -> list[dict[str, Any]]:
    from formats.container.records import Part, RecordType

    return [
        {
            "record": entry.sequence,
            "offset": offset,
            "type": entry.name,
            "codec": entry.codec,
            "part": Part(entry.part).name.lower() if entry.type == RecordType.ROWS else None,
            "first_layer": entry.first_layer,
            "layer_count": entry.layer_count,
            "first": entry.first,
            "count": entry.count,
            "stored_bytes": entry.stored,
            "raw_bytes": entry.raw,
        }
        for offset, entry in file.entries
    ]


def _text(file: TraceFile, facts: dict[str, Any]) -> str:
    model = str(facts["capture"].get("model", "unknown"))
    steps = "" if facts["snapshots"] == 1 else f", {facts['tokens_first']} to {facts['tokens_final']} tokens"
    parts = [
        columns(
            [
                [
                    "file",
                    f"{file.path}, {size(facts['file_bytes'])}, format {facts['format']}, by {facts['created_by']}",
                ],
                *([["encrypted", f"with a {facts['encrypted']}"]] if facts["encrypted"] else []),
                ["tier", facts["tier"] or "none"],
                *_codec(facts),
                *_lost(facts),
                *_profile(facts),
                [
                    "model",
                    f"{model}, {facts['fingerprint'].get('architecture', 'unknown architecture')}, {facts['dtype']}",
                ],
                ["weights", facts["fingerprint"].get("weights", "unknown")[:16]],
                ["geometry", _geometry(file)],
                *([["batch", _batch(facts)]] if facts["batch"] > 1 else []),
                ["snapshots", f"{facts['snapshots']}{steps}, keyframes {_short(facts['keyframes'])}"],
                ["tokens", f"{facts['tokens_final']}, and {facts['reference_tokens']} of reference text"],
                [
                    "raw",
                    f"{size(facts['raw_bytes_trace'])} all snapshots, {size(facts['raw_bytes_final'])} the final cache",
                ],
                ["ratio", f"{ratio(facts['ratio_trace'])} of the whole trace"],
                [
                    "",
                    f"{ratio(facts['ratio_final_fp32'])} of the final cache alone in fp32, "
                    f"{ratio(facts['ratio_final_fp16'])} in fp16; {facts['bits_per_value_final']:.3f} bits a value",
                ],
            ]
        )
    ]
    shares = [
        [kind, f"{count}", f"{100 * count / file.size:.2f}%"] for kind, count in facts["bytes_by_kind"].items() if count
    ]
    parts.append(columns(shares, ("bytes by kind", "bytes", "share")))
    parts += [_quality(record) for record in facts["quality"]]
    if not facts["quality"]:
        parts.append("quality: not measured yet (tsc verify --record)")
    for key in ("layers", "records"):
        if key in facts:
            head = list(facts[key][0])
            parts.append(columns([["" if row[c] is None else str(row[c]) for c in head] for row in facts[key]], head))
    return "\n\n".join(parts)


def _geometry(file: TraceFile) -> str:
    return "; ".join(
        f"{count} layer{'s' if count > 1 else ''} of {_layer(spec)}" for _, count, spec in file.geometry.runs()
    )


def _layer(spec: LayerSpec) -> str:
    """What a layer keeps, in words."""
    contents = []
    if spec.parts:
        alike = spec.key_size == spec.value_size
        sizes = f"size {spec.key_size}" if alike else f"sizes {spec.key_size} and {spec.value_size}"
        window = f" (window {spec.window})" if spec.window else ""
        contents.append(f"{spec.kind} attention{window}, {spec.heads} KV heads, {sizes}")
    if spec.index_size:
        contents.append(f"indexer keys of size {spec.index_size}")
    contents += [f"state {state.name} {list(state.shape)} {state.dtype}" for state in spec.states]
    return ", ".join(contents) or "nothing of their own"


def _batch(facts: dict[str, Any]) -> str:
    padded = f", with {_short(facts['padding'])} tokens of padding in front" if facts["padding"] else ""
    return f"{facts['batch']} sequences{padded}"


def _codec(facts: dict[str, Any]) -> list[list[str]]:
    """Lines for the codec and its settings, no wider than a terminal."""
    import textwrap

    shown = {key: value for key, value in facts["parameters"].items() if value != "" and key != "profile"}
    settings = ", ".join(f"{key}={value}" for key, value in shown.items())
    lines = [str(facts["codec"]), *textwrap.wrap(settings, 66)]
    return [["codec" if not number else "", line] for number, line in enumerate(lines)]


def _lost(facts: dict[str, Any]) -> list[list[str]]:
    """A line where the codec does not say that the rows are not as captured."""
    lost_by = facts["lost_by"]
    return [] if lost_by in (None, facts["codec"]) else [["lost by", f"{lost_by}: the rows are not as captured"]]


def _profile(facts: dict[str, Any]) -> list[list[str]]:
    if facts["profile"] is None:
        return []
    where = "in the file" if facts["profile"]["embedded"] else "needed to read the rows (tsc profiles)"
    return [["profile", f"{facts['profile']['digest'][:12]}, {where}"]]


def _short(items: list[int]) -> str:
    shown = ", ".join(str(item) for item in items[:6])
    return shown + (f", ... ({len(items)})" if len(items) > 6 else "")


def _quality(record: dict[str, Any]) -> str:
    """A line for a measured snapshot, whose values may be of any kind: the file says them."""
    verdict = record.get("verdict")
    return printable(
        f"quality of snapshot {record.get('snapshot')}: KL {_figure(record.get('kl_mean'), '.3g')}, "
        f"top-1 {_figure(record.get('top1'), '.4f')} "
        f"over {record.get('positions')} positions ({record.get('reference')})"
        + ("" if record.get("sufficient", True) else ", insufficient")
        + (f": {verdict}" if isinstance(verdict, str) else "")
    )


def _figure(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else str(value)
