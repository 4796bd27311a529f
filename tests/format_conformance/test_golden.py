"""Files of released versions stay readable, and today's writer gives the bytes that they have.

`python -m tests.format_conformance.test_golden` writes the files anew and prints the hashes below,
which are changed by hand with them. That is allowed until the CHANGELOG calls 0.1.0 released.  From
then on no file is ever written anew: a version that adds something adds files of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import zstandard

from formats import Trace, load
from formats.container.encryption import Secret
from formats.file import writer as trace_writer
from formats.file.check import check
from tests.format_conformance import profiles, samples, samples_encrypted
from tests.format_conformance.second_reader import reader as second_reader
from tests.format_conformance.test_second_reader import assert_same_content
from tests.support.traces import FULL, full_trace, growing_trace, same_snapshots

FOLDER = Path(__file__).parent / "golden"
SHA256 = {
    "1.0-lossless-bfloat16.tsc": "c4c1687594b16b848a8903a413d7a259d87739c9208b134d3eabafba1f4d9137",
    "1.0-keyframes-float16-batch2.tsc": "17e68242634444f0b903509c4efbea25f7a7145145fedb58579f2c0a03cc615d",
    "1.0-scalar-float32.tsc": "f9e0f17b8d26dd5682794873258bd9b91df7a06b66f1c78601b6425db751675f",
    "1.0-vq-bfloat16.tsc": "3e9afa89da7ddf785ce5a08cf0c735d1cbea91d0062547131b3475b86c7dd569",
    "1.0-delta-edited-float32.tsc": "b9964e8b0cc4ac6a160f7c7fc33deefae6a01f22d840a1c1b39734e51291b6d4",
    "1.0-h2o-bfloat16.tsc": "923fa4540b5f8157e4853b2c44017d479236eba2088df9136faf4ef223f3b8ca",
    "1.0-klt-float32.tsc": "c25b62c35c06017e3e3b2bd7baaa8a5ba9105ffd6a99478a61876b8e2b0bbb09",
    "1.0-klt-groups-bfloat16.tsc": "00fd0d0d6eec25a3aec6497035005c6e5f721dbc200e2bbce12c72145762b212",
    "1.0-everything-bfloat16.tsc": "7f774e3a424d11a34e3c9eeaa7de96553e535b2e47e4fc841ec9abab12edc3f4",
    "1.0-batch-float32.tsc": "1888031fc9aa6d260c3c578a222af7087d7e89701bd621e22009d94407216841",
    "1.0-states-scalar-bfloat16.tsc": "5f6790214c272154730e02e1c8497db4736c4bf108fbeabf7353a11bbd9be780",
    "1.0-key-bfloat16.tsc": "a10c71eb5426ae659a2a56cb555e4d8708bfe3f205f0f867fb748484d744f336",
    "1.0-passphrase-scalar-float32.tsc": "478d38dd9c483779050f9d4ebccfbec3f291c3580def66505d614b649ff68dd4",
    "1.0-lossless-of-scalar-float32.tsc": "9e6e4e85c15f1fe744f192ff19e33f2a71d9f2d49dbf82110a2710882b96d230",
}
# What the encrypted ones are encrypted with
SECRETS: dict[str, bytes | str] = {
    "1.0-key-bfloat16.tsc": bytes.fromhex("6b" * 31 + "21"),
    "1.0-passphrase-scalar-float32.tsc": "ein sehr geheimes Wörtchen",
}


def lossless() -> Trace:
    """Every record that a capture can write."""
    trace = samples.attended(
        growing_trace(dtype="bfloat16", lengths=(7, 8, 9, 12), fingerprint={"weights": "w", "dtype": "bfloat16"})
    )
    trace.reference = [5, 70000, 7]
    trace.info = {"model": "test", "chunk": 4, "prompt_tokens": 7}
    trace.quality = [{"snapshot": 3, "kl_mean": 0.0, "top1": 1.0}]
    return trace


def keyframes() -> Trace:
    return growing_trace(dtype="float16", batch=2, lengths=(5, 6, 7), keyframe_interval=2)


def batch() -> Trace:
    return full_trace(dtype="float32", batch=3, padding=(2, 0, 1))


# The traces of the files that hold every bit, made without reading them
EXACT: dict[str, Callable[[], Trace]] = {
    "1.0-lossless-bfloat16.tsc": lossless,
    "1.0-keyframes-float16-batch2.tsc": keyframes,
    "1.0-everything-bfloat16.tsc": full_trace,
    "1.0-batch-float32.tsc": batch,
    "1.0-key-bfloat16.tsc": lossless,
}
# What writes each file
WRITTEN: dict[str, Callable[[], bytes]] = {
    "1.0-lossless-bfloat16.tsc": lambda: samples.file_bytes(lossless()),
    "1.0-keyframes-float16-batch2.tsc": lambda: samples.file_bytes(keyframes()),
    "1.0-scalar-float32.tsc": lambda: samples.compressed(
        samples.finite(dtype="float32"), "scalar", {"levels": 11, "group": 3}
    ),
    "1.0-vq-bfloat16.tsc": lambda: samples.compressed(
        samples.finite(), "vq", {"block": 2, "centroids": 8, "threshold": 0.3}
    ),
    "1.0-delta-edited-float32.tsc": lambda: samples.compressed(samples.edited(), "delta", {"bits": 5}),
    "1.0-h2o-bfloat16.tsc": lambda: samples.compressed(
        samples.attended(samples.finite()), "scalar", evict="h2o", evict_settings={"keep": 0.5, "sinks": 1}
    ),
    "1.0-klt-float32.tsc": lambda: samples.klt(
        profiles.one_group, samples.finite((FULL, FULL), dtype="float32"), fineness=100, rest="yes"
    ),
    "1.0-klt-groups-bfloat16.tsc": lambda: samples.klt(
        profiles.two_groups, samples.finite((FULL,) * 3), fineness=60, rest="no"
    ),
    "1.0-everything-bfloat16.tsc": lambda: samples.file_bytes(full_trace()),
    "1.0-batch-float32.tsc": lambda: samples.file_bytes(batch()),
    "1.0-states-scalar-bfloat16.tsc": lambda: samples.compressed(full_trace(finite=True), "scalar", {"levels": 11}),
    "1.0-key-bfloat16.tsc": lambda: encrypted("1.0-key-bfloat16.tsc", samples.file_bytes(lossless())),
    "1.0-passphrase-scalar-float32.tsc": lambda: encrypted(
        "1.0-passphrase-scalar-float32.tsc",
        samples.compressed(samples.finite(dtype="float32"), "scalar", {"levels": 11, "group": 3}),
    ),
    "1.0-lossless-of-scalar-float32.tsc": lambda: samples.file_bytes(load(FOLDER / "1.0-scalar-float32.tsc")),
}
# The others' arithmetic may differ between CPUs
REPRODUCED = (
    "1.0-lossless-bfloat16.tsc",
    "1.0-keyframes-float16-batch2.tsc",
    "1.0-scalar-float32.tsc",
    "1.0-everything-bfloat16.tsc",
    "1.0-batch-float32.tsc",
    "1.0-key-bfloat16.tsc",
    "1.0-passphrase-scalar-float32.tsc",
    "1.0-lossless-of-scalar-float32.tsc",
)
# Of what the second reader made of the snapshots' tensors when the file was written
DECODED = {
    "1.0-scalar-float32.tsc": "88c68142ac228020fc44c7c783fc6f57c46b9e7ab0139d862d370493b7d0c663",
    "1.0-vq-bfloat16.tsc": "c04c35ea03877b9988a60a00122da788d9608bda2fda99f4e0ec0947375a8673",
    "1.0-delta-edited-float32.tsc": "5b248a6ae8a9dac1346e62955b7789e01d34b3a76293d29962c2fe5495144175",
    "1.0-h2o-bfloat16.tsc": "ca86bceaedbc9b31357c10b4e4561b6bd6722ec0ace6e465ed5442c85d4a4200",
    "1.0-klt-float32.tsc": "697535037a95e9444ade2f4fba38aa9165154d910a648e0e06b7cac8a12342e7",
    "1.0-klt-groups-bfloat16.tsc": "170387d8d09dfe2ce5434bab6601da67607a6d52acc5d4e520d7113e0570c133",
    "1.0-states-scalar-bfloat16.tsc": "4081bc5866b80ce89bb59e327252e5695a29c0e1a12ad511c0b0303c342fe9ed",
    "1.0-passphrase-scalar-float32.tsc": "88c68142ac228020fc44c7c783fc6f57c46b9e7ab0139d862d370493b7d0c663",
    "1.0-lossless-of-scalar-float32.tsc": "88c68142ac228020fc44c7c783fc6f57c46b9e7ab0139d862d370493b7d0c663",
}


def encrypted(name: str, data: bytes) -> bytes:
    """With a salt and an identity that are the same every time; only a golden file may have
    them.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return samples_encrypted.encrypted(data, SECRETS[name], salt=digest[:16], file_id=digest[16:])


def secret(name: str) -> Secret | None:
    return samples_encrypted.secret_of(SECRETS[name]) if name in SECRETS else None


def written(name: str) -> bytes:
    """The file, as any release of the program writes it."""
    with mock.patch.object(trace_writer, "CREATED_BY", "tsc 0.1.0"):
        return WRITTEN[name]()


def decoded(name: str) -> str:
    document = second_reader.read((FOLDER / name).read_bytes(), secret=SECRETS.get(name))
    digest = hashlib.sha256()
    for number in range(len(document.snapshots)):
        for keys, values in document.snapshot(number):
            digest.update(keys + values)
        for keys in document.indexer_keys(number):
            digest.update(keys)
        for states in document.states(number):
            digest.update(b"".join(states))
    return digest.hexdigest()


@pytest.mark.parametrize("name", SHA256)
def test_the_file_is_the_one_that_was_released(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == SHA256[name]


@pytest.mark.parametrize("name", EXACT)
def test_it_reads_bit_exactly(name: str) -> None:
    check(FOLDER / name, secret(name))
    have, want = load(FOLDER / name, secret(name)), EXACT[name]()
    assert (have.geometry, have.fingerprint, have.views) == (want.geometry, want.fingerprint, want.views)
    assert (have.reference, have.info, have.quality) == (want.reference, want.info, want.quality)
    assert (have.raw_bytes, have.raw_bytes_final) == (want.raw_bytes, want.raw_bytes_final)
    for number in range(len(want)):
        assert same_snapshots(have.snapshot(number), want.snapshot(number))


@pytest.mark.parametrize("name", SHA256)
def test_both_readers_find_the_same(name: str) -> None:
    check(FOLDER / name, secret(name))
    document = second_reader.read((FOLDER / name).read_bytes(), secret=SECRETS.get(name))
    assert_same_content(load(FOLDER / name, secret(name)), document)


@pytest.mark.parametrize("name", DECODED)
def test_decoding_has_not_changed(name: str) -> None:
    assert decoded(name) == DECODED[name]


@pytest.mark.parametrize("name", REPRODUCED)
def test_the_writer_still_gives_its_bytes(name: str) -> None:
    assert zstandard.ZSTD_VERSION == (1, 5, 7), "another zstd may compress differently: constraints.txt pins it"
    assert written(name) == (FOLDER / name).read_bytes()


def test_every_file_in_the_folder_is_listed() -> None:
    assert {path.name for path in FOLDER.glob("*.tsc")} == SHA256.keys()
    assert EXACT.keys() | DECODED.keys() == SHA256.keys()


if __name__ == "__main__":
    for golden in WRITTEN:
        (FOLDER / golden).write_bytes(written(golden))
        print(f'    "{golden}": "{hashlib.sha256((FOLDER / golden).read_bytes()).hexdigest()}",')
    for golden in [name for name in WRITTEN if name not in EXACT]:
        print(f'    "{golden}": "{decoded(golden)}",')
