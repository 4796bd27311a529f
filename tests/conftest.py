from __future__ import annotations

import os

# before typer is imported anywhere: plain, 80 columns wide
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
os.environ["TERMINAL_WIDTH"] = "80"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a hub; the default model comes out of a wheel
