"""A codec of the format is complete: each test here fails for a codec that lacks one thing, and names it."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from formats.codecs import CODECS, Codec
from tests import ROOT
from tests.format_conformance import samples
from tests.format_conformance.second_reader import reader as second_reader
from tests.support.codec_samples import (
    BOUNDS,
    DECODED,
    GOLDEN,
    OWN_SUITE,
    RECIPES,
    VARIANTS,
    decoded_golden,
    golden_payload,
)

EACH = pytest.mark.parametrize("kind", CODECS.values(), ids=lambda kind: kind.name)


@EACH
def test_it_is_specified_and_described(kind: type[Codec]) -> None:
    """In docs/format.md by id, name and a section, in docs/codecs.md by a section with a row a setting."""
    specified = (ROOT / "docs" / "format.md").read_text()
    assert re.search(rf"^\| {kind.id} \| {kind.name} \|", specified, re.MULTILINE)
    assert re.search(rf"^### Codecs? (\d+ and )?{kind.id}\b", specified, re.MULTILINE)
    described = (ROOT / "docs" / "codecs.md").read_text()
    section = re.search(rf"^### [^\n]*`{kind.name}`[^\n]*$(.*?)^##", described, re.MULTILINE | re.DOTALL)
    assert section, f"docs/codecs.md has no section on {kind.name}"
    missing = [one.name for one in fields(kind.Settings) if f"`{one.name}`" not in section[1]]
    assert not missing, f"docs/codecs.md describes {kind.name} without {', '.join(missing)}"


@EACH
def test_it_has_settings_to_try_and_a_bound(kind: type[Codec]) -> None:
    if kind.name in OWN_SUITE:
        assert (ROOT / OWN_SUITE[kind.name]).is_file()
        return
    assert kind.name in {name for name, _ in VARIANTS}, f"VARIANTS of tests/support/codec_samples.py lacks {kind.name}"
    assert kind.exact or kind.name in BOUNDS, f"BOUNDS of tests/support/codec_samples.py lacks {kind.name}"


@EACH
def test_it_has_a_recipe(kind: type[Codec]) -> None:
    recipes = {recipe.codec for recipe in RECIPES} | OWN_SUITE.keys()
    assert kind.name in recipes, f"RECIPES of tests/support/codec_samples.py lacks {kind.name}"


@EACH
def test_it_has_a_sample_file_that_the_second_reader_decodes(kind: type[Codec]) -> None:
    codecs = set()
    for name in ("valid", *samples.COMPRESSED):
        if name == "valid" or name.split(",")[0] == kind.name:
            codecs |= {record.codec for record in second_reader.read(samples.sample(name)).rows.stored}
    assert kind.id in codecs, f"no file of tests/format_conformance/samples.py is of codec {kind.name}"


@EACH
def test_its_golden_payload_is_still_decoded(kind: type[Codec]) -> None:
    assert kind.name in DECODED, f"DECODED of tests/support/codec_samples.py lacks {kind.name}"
    assert decoded_golden(kind.name) == DECODED[kind.name]


# the arithmetic of the others may differ between CPUs
@pytest.mark.parametrize("name", ["lossless", "scalar"])
def test_its_golden_payload_is_still_written(name: str) -> None:
    assert golden_payload(name) == (GOLDEN / f"{name}.safetensors").read_bytes()


def test_there_is_no_golden_payload_of_another_codec() -> None:
    names = {kind.name for kind in CODECS.values()}
    assert {path.stem for path in GOLDEN.iterdir()} == DECODED.keys() == names


def test_ids_and_names_are_literal_and_in_order() -> None:
    """An id is never given to another byte format: this list only grows."""
    assert [(kind.id, kind.name) for kind in CODECS.values()][:6] == [
        (1, "lossless"),
        (2, "scalar"),
        (3, "vq"),
        (4, "pq"),
        (5, "delta"),
        (6, "klt"),
    ]
    assert list(CODECS) == list(range(1, len(CODECS) + 1))
    assert all(number == kind.id for number, kind in CODECS.items())
