"""Tests: `formats` and `tsc_cli` mirror the packages, `format_conformance` is what any reader must do."""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # of the checkout
