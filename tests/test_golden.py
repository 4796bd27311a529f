"""Files of released versions stay readable, and today's writer gives their bytes.

`python -m tests.test_golden` writes the files anew; it is run by hand when the format gets a new version, and the
hashes below are changed by hand with it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import zstandard

from formats import Trace, load, save
from formats.integrity import check
from tests.traces import growing_trace, same_bits

FOLDER = Path(__file__).parent / "golden"
SHA256 = {
    "1.0-single-float32.tsc": "2f6ab21dd39cae89711622c3e27dcd46575469cf42cfb4445ad727fbb594554a",
    "1.0-trace-bfloat16.tsc": "70122dc68dd7b88913cc3699a80c27a8561bce3004e17bdab32da703ae713dfd",
    "1.0-keyframes-float16-batch2.tsc": "514893f5faff952a932bc8b88ca405fe99daad970d6609a1bd28dcae6b8c0cd9",
}


def expected(name: str) -> Trace:
    """The trace that a golden file holds, made without reading it."""
    if name == "1.0-single-float32.tsc":
        return growing_trace(dtype="float32", lengths=(9,))
    if name == "1.0-trace-bfloat16.tsc":
        trace = growing_trace(
            dtype="bfloat16", lengths=(7, 8, 9, 12), fingerprint={"weights": "w", "dtype": "bfloat16"}
        )
        trace.reference = [5, 70000, 7]
        trace.info = {"model": "test", "chunk": 4, "prompt_tokens": 7}
        trace.quality = [{"snapshot": 3, "kl_mean": 0.0, "top1": 1.0}]
        return trace
    return growing_trace(dtype="float16", batch=2, lengths=(5, 6, 7), keyframe_interval=2)


@pytest.mark.parametrize("name", SHA256)
def test_the_file_is_the_one_that_was_released(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == SHA256[name]


@pytest.mark.parametrize("name", SHA256)
def test_it_reads_bit_exactly(name: str) -> None:
    check(FOLDER / name)
    have, want = load(FOLDER / name), expected(name)
    assert (have.geometry, have.fingerprint, have.views) == (want.geometry, want.fingerprint, want.views)
    assert (have.reference, have.info, have.quality) == (want.reference, want.info, want.quality)
    for number in range(len(want)):
        a, b = have.snapshot(number), want.snapshot(number)
        assert (a.token_ids, a.positions, a.row_positions) == (b.token_ids, b.positions, b.row_positions)
        assert all(same_bits(x, y) for x, y in zip([*a.keys, *a.values], [*b.keys, *b.values], strict=True))


@pytest.mark.parametrize("name", SHA256)
def test_the_writer_still_gives_its_bytes(name: str, tmp_path: Path) -> None:
    assert zstandard.ZSTD_VERSION == (1, 5, 7), "another zstd may compress differently: constraints.txt pins it"
    save(expected(name), tmp_path / name, deterministic=True)
    assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def test_every_file_in_the_folder_is_listed() -> None:
    assert {path.name for path in FOLDER.glob("*.tsc")} == SHA256.keys()


if __name__ == "__main__":
    for golden in SHA256:
        save(expected(golden), FOLDER / golden, force=True, deterministic=True)
        print(f'    "{golden}": "{hashlib.sha256((FOLDER / golden).read_bytes()).hexdigest()}",')
