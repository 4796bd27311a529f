"""Where things are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The user's cache folder for `tsc`; `TSC_CACHE` overrides it."""
    asked = os.environ.get("TSC_CACHE")
    return Path(asked) if asked else Path(platformdirs.user_cache_dir("tsc-kv", appauthor=False))
