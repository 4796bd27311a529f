"""Encrypted files that somebody tampered with are refused by both readers, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from formats import load
from formats.container.encryption import Secret
from formats.errors import CorruptError, LockedError, TscError, UnsupportedFileError
from formats.file import check
from tests.format_conformance.liars_encryption import LIARS, EncryptedLiar
from tests.format_conformance.samples_encrypted import KEY, sample
from tests.format_conformance.second_reader import reader as second_reader

each = pytest.mark.parametrize("liar", LIARS, ids=lambda liar: liar.name)


@each
def test_refused_with_its_reason(liar: EncryptedLiar, tmp_path: Path, tally: Any) -> None:
    path = tmp_path / "crafted.tsc"
    path.write_bytes(liar.build())
    secret = Secret.of_key(liar.key)
    with pytest.raises(TscError) as caught:
        check.check(path, lambda *_: secret)
    assert type(caught.value) is liar.error
    assert caught.value.exit_code == (2 if liar.error is LockedError else 3)
    assert caught.value.path == str(path)
    assert liar.message in caught.value.message
    with tally("crafted liars") as counts:
        counts["files refused with their own reason"] += 1


@each
def test_refused_by_the_second_reader(liar: EncryptedLiar) -> None:
    reason = {LockedError: "locked", CorruptError: "corrupt", UnsupportedFileError: "unsupported"}[liar.error]
    with pytest.raises(second_reader.Refused, match=f"^{reason}: "):
        second_reader.read(liar.build(), secret=liar.key)


@each
def test_without_the_key_order_and_checksums_are_seen(liar: EncryptedLiar, tmp_path: Path) -> None:
    path = tmp_path / "crafted.tsc"
    path.write_bytes(liar.build())
    if liar.sealed:
        with pytest.raises((CorruptError, UnsupportedFileError)) as caught:
            check.check_sealed(path)
        assert liar.message in caught.value.message
    else:
        check.check_sealed(path)  # what is wrong shows only with the key, and nothing else is wrong


@pytest.mark.parametrize("liar", [liar for liar in LIARS if liar.read], ids=lambda liar: liar.name)
def test_no_snapshot_comes_out_of_it(liar: EncryptedLiar, tmp_path: Path) -> None:
    """Opening reads no rows, and the record of rows that lies may be that of any snapshot."""
    path = tmp_path / "crafted.tsc"
    path.write_bytes(liar.build())
    secret = Secret.of_key(liar.key)
    with pytest.raises((CorruptError, UnsupportedFileError, LockedError)):
        load(path, lambda *_: secret).snapshot(-1)


def test_the_sample_itself_is_read(tmp_path: Path) -> None:
    path = tmp_path / "honest.tsc"
    path.write_bytes(sample("valid"))
    check.check(path, Secret.of_key(KEY))
    second_reader.read(sample("valid"), secret=KEY)


def test_names_are_unique() -> None:
    assert len({liar.name for liar in LIARS}) == len(LIARS) >= 60
