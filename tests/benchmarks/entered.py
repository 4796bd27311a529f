"""How many modules a job enters: `python -m tests.benchmarks.entered [ROOT]`, for a reader who follows the calls.

Counts the files of `formats` and `tsc_cli` in which a function is called while a small model is captured and saved, the
file is compressed, and verified; imports are not counted.  ROOT is another checkout, such as one of an earlier commit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
sys.path.insert(0, str(ROOT))


@contextmanager
def entering(files: set[str]) -> Iterator[None]:
    """Collect the files whose functions are called inside."""

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def entered(job: Callable[[], object]) -> tuple[int, int]:
    """(modules of formats, modules of tsc_cli) in which a function is called."""
    files: set[str] = set()
    with entering(files):
        job()
    return tuple(  # type: ignore[return-value]
        sum(name.startswith(str(ROOT / package)) for name in files) for package in ("formats", "tsc_cli")
    )


def main() -> None:
    import tsc_cli
    from tests.support import models

    assert Path(tsc_cli.__file__).is_relative_to(ROOT)
    model = models.llama()
    with tempfile.TemporaryDirectory() as folder:
        file, small = Path(folder) / "a.tsc", Path(folder) / "b.tsc"

        def capture_and_save() -> None:
            tsc_cli.save(tsc_cli.capture(model, models.prompt(40), steps=2), file)

        jobs = {
            "capture + save": capture_and_save,
            "compress --tier 4x": lambda: tsc_cli.compress(tsc_cli.load(file), small, tier="4x", model=model),
            "verify": lambda: tsc_cli.verify(tsc_cli.load(file), model),
        }
        for measured in (False, True):  # at first, what is imported and probed once
            for name, job in jobs.items():
                formats, program = entered(job)
                if measured:
                    print(f"{name:20} {formats:3} of formats, {program:3} of tsc_cli")
            for made in (file, small):
                made.unlink()


if __name__ == "__main__":
    main()
