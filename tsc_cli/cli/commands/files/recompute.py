"""What `tsc verify --recompute` tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from formats.container import strict_json
from tsc_cli.cli.output import Output
from tsc_cli.text_format import columns
from tsc_cli.verification import header_claims
from tsc_cli.verification.recompute import Compared, Entry, Findings, recompute
from tsc_cli.verification.recomputed_rows import passes

if TYPE_CHECKING:
    from formats import Trace
    from tsc_cli.huggingface.models.loading import Loaded
    from tsc_cli.scoring.result import Verified


@dataclass
class Report:
    """The findings, and what of the header's quality nothing measured."""

    findings: Findings
    unmeasured: list[int] = field(default_factory=list)

    @property
    def lies(self) -> list[str]:
        return self.findings.lies

    @property
    def labelled(self) -> bool:
        """Whether the rows are labelled with the file's tokens, so that they can be measured."""
        return bool(self.findings.snapshots)

    def against_quality(self, trace: Trace, results: list[Verified]) -> list[str]:
        """All lies, once the quality that the header states was held against what was measured."""
        if trace.geometry.batch == 1:  # of a batch one sequence is measured and none stated
            self.lies.extend(header_claims.quality(trace.quality, results))
            self.unmeasured = header_claims.unmeasured(trace.quality, results)
        return self.lies

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": "tsc.recompute/1",
            "snapshots": [_facts(comparison) for comparison in self.findings.snapshots],
            "lies": self.lies,
            "quality_not_measured": self.unmeasured,
        }

    def text(self) -> str:
        rows = [_row(comparison) for comparison in self.findings.snapshots]
        head = ["snapshot", "new tensors", "identical", "worst", "error", "codec's own", "allowed", "verdict"]
        parts = [f"\nrecomputed; errors over the RMS of a head's rows\n{columns(rows, head)}"] if rows else []
        if self.unmeasured:
            numbers = ",".join(map(str, self.unmeasured))
            parts.append(f"not measured: the quality that the header states (--snapshots {numbers})")
        return "\n".join(parts)


def compared(trace: Trace, loaded: Loaded, out: Output, *, identical: bool) -> Report:
    """Compare a whole file with a new prefill of its tokens.

    Args:
        identical: what is within rounding only is a lie, too.
    """
    with out.progress("recomputing", passes(trace)) as advance:
        findings = recompute(trace, loaded.adapter, tokenizer=loaded.tokenizer, progress=advance)
    if identical:
        findings.lies += [
            f"snapshot {comparison.snapshot}: {comparison.tensors - comparison.identical} of {comparison.tensors} "
            "tensors are not bit-identical"
            for comparison in findings.snapshots
            if comparison.verdict == "within tolerance"
        ]
    return Report(findings)


def _row(comparison: Compared) -> list[str]:
    worst = comparison.first_wrong or comparison.worst
    figures = (
        ["-"] * 4
        if worst is None
        else [_place(worst), f"{worst.error:.3g}", f"{worst.own:.3g}", f"{worst.allowed:.3g}"]
    )
    return [str(comparison.snapshot), str(comparison.tensors), str(comparison.identical), *figures, comparison.verdict]


def _place(entry: Entry) -> str:
    sequence = f" sequence {entry.sequence}" if entry.sequence else ""
    row = "" if entry.row is None else f" head {entry.head} row {entry.row}"
    return f"layer {entry.layer} {entry.part}{sequence}{row}"


def _facts(comparison: Compared) -> dict[str, Any]:
    return {
        "snapshot": comparison.snapshot,
        "new_tensors": comparison.tensors,
        "identical_tensors": comparison.identical,
        "verdict": comparison.verdict,
        "wrong_parts": comparison.wrong,
        "worst": _entry(comparison.worst),
        "first_wrong": _entry(comparison.first_wrong),
    }


def _entry(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    facts = {
        "layer": entry.layer,
        "part": entry.part,
        "sequence": entry.sequence,
        "head": entry.head,
        "row": entry.row,
        "error_over_rms": entry.error,
        "codec_error_over_rms": entry.own,
        "allowed_over_rms": entry.allowed,
        "share_of_allowed": entry.share,
        "too_coarse": entry.coarse,
    }
    return strict_json.writable(facts)
