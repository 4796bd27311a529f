"""Coverage-guided mutation of files and of payloads: only errors of `tsc` come out, in little time
and memory.

python -m tests.reliability.fuzz [--seconds N] [--keep FOLDER] [libFuzzer options]

Needs atheris (`pip install 'tsc-kv[fuzz]'`).  An input that begins with the signature's first byte
is a file, which is taken apart, edited and put together again with right checksums; of any other,
the first byte says what the rest is. Ends with exit code 0 after "Done N runs", or with the
traceback of what came out; the input is kept as crash-*.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import atheris
import torch

from tests import ROOT

os.environ["TSC_MEMORY_BUDGET"] = str(64 << 20)

# the parser of JSON looks at each character, which takes most of the time where it is watched
with atheris.instrument_imports(include=["formats"], exclude=["formats.container.strict_json"]):
    import formats.codecs
    from formats import load
    from formats.container.encryption import Scheme, Secret
    from formats.errors import CorruptError, LimitError, LockedError, UnsupportedFileError
    from formats.file import check
    from formats.repair.diagnose import diagnose

from tests.format_conformance import mutate
from tests.format_conformance.craft import HEADER, LABELS, MODEL, PROFILE, VIEWS, Craft
from tests.format_conformance.samples_encrypted import KEY

CONFORMANCE = ROOT / "tests" / "format_conformance"

REFUSALS = (CorruptError, UnsupportedFileError, LimitError, LockedError)
MEMORY = (64 << 20) + (64 << 20)  # the budget, and what a reader may take beside it
SECONDS = 2.0  # of processor time
LONGEST = 16_384
FILE = 0x89
# what an input is that is not a whole file: type of the record whose payload it becomes, sound file
# of tests/format_conformance/attacks
KINDS = (
    (MODEL, "hybrid"),
    (HEADER, "plain"),
    (LABELS, "padded"),
    (VIEWS, "plain"),
    (PROFILE, "klt"),
    ("words", "klt"),
    ("profile", "klt"),
    ("rows", "scalar"),
    ("rows", "vq"),
    ("rows", "delta"),
    ("rows", "klt"),
)


def base(name: str) -> Craft:
    return Craft.of((CONFORMANCE / "attacks" / "valid" / f"{name}.tsc").read_bytes())


def words(data: bytes) -> tuple[str, list[int], bytes]:
    data = data[: len(data) // 4 * 4]
    return "U32", [len(data) // 4], data


def profile(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    return {"digest": ("U8", [32], hashlib.sha256(data).digest()), "data": ("U8", [len(data)], data)}


def file_of(data: bytes) -> bytes:
    """The file that an input stands for: itself, or a sound one with a payload that is the
    input.
    """
    if not data or data[0] == FILE:
        return data
    what, name = KINDS[data[0] % len(KINDS)]
    craft, payload = base(name), data[1:]
    if what == "words":
        piece = craft.rows(0)
        piece.set_tensors(piece.tensors() | {"words": words(payload)})
    elif what == "profile":
        craft[PROFILE].set_tensors(profile(payload))
    else:
        piece = craft.rows(0) if what == "rows" else craft[what]
        piece.raw = payload
    return craft.build()


def seeds() -> list[bytes]:
    """Sound and hostile files, and the payloads of sound ones."""
    found = [
        path.read_bytes()
        for path in sorted(CONFORMANCE.glob("golden/*.tsc")) + sorted(CONFORMANCE.glob("attacks/**/*.tsc"))
    ]
    for number, (what, name) in enumerate(KINDS):
        craft = base(name)
        if what == "words":
            payload = craft.rows(0).tensors()["words"][2]
        elif what == "profile":
            payload = craft[PROFILE].tensors()["data"][2]
        else:
            payload = (craft.rows(0) if what == "rows" else craft[what]).raw
        found.append(bytes([number]) + payload)
    return [data for data in found if len(data) <= LONGEST]


def mutated(data: bytes, longest: int, seed: int) -> bytes:
    """A file with its structure edited, now and then also byte for byte; other inputs byte for
    byte.
    """
    random = Random(seed)
    if data[:1] == bytes([FILE]) and random.random() < 0.9:
        # what an input declares may be more than taking it apart can bear, and edits may not apply
        # to it
        with contextlib.suppress(Exception):
            data = mutate.mutant(data, random)
    else:
        data = data[:1] + atheris.Mutate(data[1:], longest - 1)
    return data[:longest]


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    begin = time.thread_time()
    yield
    taken = time.thread_time() - begin
    assert taken < seconds, f"{taken:.1f} s"


def restore(path: Path) -> None:
    """What checking refuses may open, and give snapshots of rows that are in order."""
    trace = load(path, key)
    for number in range(min(len(trace), 4)):
        with contextlib.suppress(*REFUSALS):
            trace.snapshot(number)


def key(path: str, scheme: Scheme) -> Secret:
    """Of the encrypted sound files, but those with a passphrase: scrypt takes longer than all the
    rest.
    """
    if scheme is not Scheme.KEY:
        raise LockedError("is encrypted with a passphrase", path=path)
    return Secret.of_key(KEY)


class Target:
    """Reads each input as a file: every byte and up to four snapshots; every fourth one also as
    `tsc doctor` does.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "input.tsc"
        self.peak = 0
        self.runs = 0

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(file_of(data))
        with within(SECONDS), contextlib.suppress(*REFUSALS):
            check.check(self.path, key)
        with within(SECONDS), contextlib.suppress(*REFUSALS):
            restore(self.path)
        if zlib.crc32(data) % 4 == 0:
            with within(SECONDS), contextlib.suppress(LimitError, LockedError):
                diagnose(self.path, key)
        self.runs += 1
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # by then all sound files were read once, and libraries have what they keep
        if self.runs == 500:
            self.peak = peak
        assert not self.peak or peak < self.peak + MEMORY, f"{(peak - self.peak) >> 20} MiB more than before"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="where inputs that crashed and the corpus stay")
    parser.add_argument("--inputs", type=Path, nargs="*", help="run these inputs and no others")
    asked, options = parser.parse_known_args()
    torch.set_num_threads(1)
    assert formats.codecs
    with tempfile.TemporaryDirectory() as temporary:
        target = Target(Path(temporary))
        for path in asked.inputs or ():
            target(path.read_bytes())
        if asked.inputs:
            return
        folder = asked.keep or Path(temporary)
        corpus = folder / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds()):
            (corpus / f"seed-{number}").write_bytes(data)
        gc.freeze()
        arguments = [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={asked.seconds}",
            f"-max_len={LONGEST}",
            "-timeout=120",
            "-rss_limit_mb=0",
            f"-artifact_prefix={folder}/",
            *options,
        ]
        atheris.Setup(arguments, target, custom_mutator=mutated)
        atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
