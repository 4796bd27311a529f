"""Files of released versions stay readable, and today's writer gives the bytes that they have.

`python -m tests.test_golden` writes the files of this version anew; it is run by hand when the format gets a new
version, and the hashes below are changed by hand with it. Files of older versions are never written anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import zstandard

from formats import Trace, load
from formats.container import writer as record_writer
from formats.container.encryption import Secret
from formats.file import writer as trace_writer
from formats.file.check import check
from tests import second_reader
from tests.format import profiles, samples, samples_encrypted
from tests.format.test_second_reader import assert_same_content
from tests.traces import FULL, full_trace, growing_trace, same_snapshots

FOLDER = Path(__file__).parent / "golden"
SHA256 = {
    "1.0-single-float32.tsc": "2f6ab21dd39cae89711622c3e27dcd46575469cf42cfb4445ad727fbb594554a",
    "1.0-trace-bfloat16.tsc": "70122dc68dd7b88913cc3699a80c27a8561bce3004e17bdab32da703ae713dfd",
    "1.0-keyframes-float16-batch2.tsc": "514893f5faff952a932bc8b88ca405fe99daad970d6609a1bd28dcae6b8c0cd9",
    "1.1-lossless-bfloat16.tsc": "f85e7ff0590a2c903315d80d9501ffc1514af69ba39ae6ad9fd952ebca1cc849",
    "1.1-scalar-float32.tsc": "4a1fe9085e2397830456a468f9858461e6e182cbd9aeb8b799f0740e5bfdd112",
    "1.1-vq-bfloat16.tsc": "cea007273a3a613468d7eb5014fbbfb72870bf73db694e49c5438050a720215a",
    "1.1-delta-edited-float32.tsc": "8d46985612a9aa19b8b2e2db57a9fa281a7b9817aa20a98305ffd03bcd084e5c",
    "1.1-h2o-bfloat16.tsc": "f6785b040f390fb462cbcb9c6cc7ab59ac8060e1315ec24ac20306de8c5d04af",
    "1.2-klt-float32.tsc": "4817deadc45dd7e36fb517bca20db4df335e9b746dab5f5ea4eb326c7e4b4e75",
    "1.2-klt-groups-bfloat16.tsc": "fccf7d0757a7ec667700c709b48d9481a40e9b1b40db631d090170335b8416b6",
    "1.3-everything-bfloat16.tsc": "81ad99801aa83abe31f872eebd92e0c38ba48784de5f8919852bff9144057078",
    "1.3-batch-float32.tsc": "99aef6e30bcd2b98c2cc1ac8bb2e6012ff8ad9fd598595825cbea30add853d24",
    "1.3-scalar-bfloat16.tsc": "a079ac8fdc70d98b3cfb5f24ebd0f5e92781a3ce197396abc48d95975f113f77",
    "1.4-key-bfloat16.tsc": "6e7303bc69bbcda5ef7c426ada0e92fdf2fd57413761fff0bde0d63db59785d6",
    "1.4-passphrase-scalar-float32.tsc": "4652b11578da9d087197562f5028931bde1d9db4a8f877a18bf16a0d61623505",
    "1.5-lossless-of-scalar-float32.tsc": "0c0833d5acd5a4687b1aabce29b03dc4f3d017b9b3555acab0d621b1a4de7c55",
}
# What the encrypted ones are encrypted with
SECRETS: dict[str, bytes | str] = {
    "1.4-key-bfloat16.tsc": bytes.fromhex("6b" * 31 + "21"),
    "1.4-passphrase-scalar-float32.tsc": "ein sehr geheimes Wörtchen",
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


# The traces of the files that hold every bit, made without reading them
EXACT: dict[str, Callable[[], Trace]] = {
    "1.0-single-float32.tsc": lambda: growing_trace(dtype="float32", lengths=(9,)),
    "1.0-trace-bfloat16.tsc": lossless,
    "1.0-keyframes-float16-batch2.tsc": lambda: growing_trace(
        dtype="float16", batch=2, lengths=(5, 6, 7), keyframe_interval=2
    ),
    "1.1-lossless-bfloat16.tsc": lossless,
    "1.3-everything-bfloat16.tsc": full_trace,
    "1.3-batch-float32.tsc": lambda: full_trace(dtype="float32", batch=3, padding=(2, 0, 1)),
    "1.4-key-bfloat16.tsc": lossless,
}
# What writes the files of the versions that today's writer still writes: 1.1 is 1.2 without codec klt
WRITTEN: dict[str, Callable[[], bytes]] = {
    "1.1-lossless-bfloat16.tsc": lambda: samples.file_bytes(lossless()),
    "1.1-scalar-float32.tsc": lambda: samples.compressed(
        samples.finite(dtype="float32"), "scalar", {"levels": 11, "group": 3}
    ),
    "1.1-vq-bfloat16.tsc": lambda: samples.compressed(
        samples.finite(), "vq", {"block": 2, "centroids": 8, "threshold": 0.3}
    ),
    "1.1-delta-edited-float32.tsc": lambda: samples.compressed(samples.edited(), "delta", {"bits": 5}),
    "1.1-h2o-bfloat16.tsc": lambda: samples.compressed(
        samples.attended(samples.finite()), "scalar", evict="h2o", evict_settings={"keep": 0.5, "sinks": 1}
    ),
    "1.2-klt-float32.tsc": lambda: samples.klt(
        profiles.one_group, samples.finite((FULL, FULL), dtype="float32"), fineness=100, rest="yes"
    ),
    "1.2-klt-groups-bfloat16.tsc": lambda: samples.klt(
        profiles.two_groups, samples.finite((FULL,) * 3), fineness=60, rest="no"
    ),
    "1.3-everything-bfloat16.tsc": lambda: samples.file_bytes(full_trace()),
    "1.3-batch-float32.tsc": lambda: samples.file_bytes(full_trace(dtype="float32", batch=3, padding=(2, 0, 1))),
    "1.3-scalar-bfloat16.tsc": lambda: samples.compressed(full_trace(finite=True), "scalar", {"levels": 11}),
    "1.4-key-bfloat16.tsc": lambda: encrypted("1.4-key-bfloat16.tsc", samples.file_bytes(lossless())),
    "1.4-passphrase-scalar-float32.tsc": lambda: encrypted(
        "1.4-passphrase-scalar-float32.tsc",
        samples.compressed(samples.finite(dtype="float32"), "scalar", {"levels": 11, "group": 3}),
    ),
    "1.5-lossless-of-scalar-float32.tsc": lambda: samples.file_bytes(load(FOLDER / "1.1-scalar-float32.tsc")),
}
# The others' arithmetic may differ between CPUs
REPRODUCED = (
    "1.1-lossless-bfloat16.tsc",
    "1.1-scalar-float32.tsc",
    "1.3-everything-bfloat16.tsc",
    "1.3-batch-float32.tsc",
    "1.4-key-bfloat16.tsc",
    "1.4-passphrase-scalar-float32.tsc",
    "1.5-lossless-of-scalar-float32.tsc",
)
# Of what the second reader made of the snapshots' tensors when the file was written
DECODED = {
    "1.1-scalar-float32.tsc": "88c68142ac228020fc44c7c783fc6f57c46b9e7ab0139d862d370493b7d0c663",
    "1.1-vq-bfloat16.tsc": "c04c35ea03877b9988a60a00122da788d9608bda2fda99f4e0ec0947375a8673",
    "1.1-delta-edited-float32.tsc": "5b248a6ae8a9dac1346e62955b7789e01d34b3a76293d29962c2fe5495144175",
    "1.1-h2o-bfloat16.tsc": "ca86bceaedbc9b31357c10b4e4561b6bd6722ec0ace6e465ed5442c85d4a4200",
    "1.2-klt-float32.tsc": "697535037a95e9444ade2f4fba38aa9165154d910a648e0e06b7cac8a12342e7",
    "1.2-klt-groups-bfloat16.tsc": "170387d8d09dfe2ce5434bab6601da67607a6d52acc5d4e520d7113e0570c133",
    "1.3-scalar-bfloat16.tsc": "4081bc5866b80ce89bb59e327252e5695a29c0e1a12ad511c0b0303c342fe9ed",
    "1.4-passphrase-scalar-float32.tsc": "88c68142ac228020fc44c7c783fc6f57c46b9e7ab0139d862d370493b7d0c663",
    "1.5-lossless-of-scalar-float32.tsc": "88c68142ac228020fc44c7c783fc6f57c46b9e7ab0139d862d370493b7d0c663",
}


def encrypted(name: str, data: bytes) -> bytes:
    """With a salt and an identity that are the same every time; only a golden file may have them."""
    digest = hashlib.sha256(name.encode()).digest()
    return samples_encrypted.encrypted(data, SECRETS[name], salt=digest[:16], file_id=digest[16:])


def secret(name: str) -> Secret | None:
    return samples_encrypted.secret_of(SECRETS[name]) if name in SECRETS else None


def written(name: str) -> bytes:
    """A file of the version that its name begins with, as any release of the program writes it."""
    minor = int(name[2])
    superblock = record_writer.pack_superblock
    with (
        mock.patch.object(trace_writer, "CREATED_BY", "tsc 0.1.0"),
        mock.patch.object(
            record_writer, "pack_superblock", lambda file_id, _, *lock: superblock(file_id, minor, *lock)
        ),
    ):
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
    CURRENT = [name for name in WRITTEN if name.startswith("1.5-")]
    for golden in CURRENT:
        (FOLDER / golden).write_bytes(written(golden))
        print(f'    "{golden}": "{hashlib.sha256((FOLDER / golden).read_bytes()).hexdigest()}",')
    for golden in CURRENT:
        print(f'    "{golden}": "{decoded(golden)}",')
