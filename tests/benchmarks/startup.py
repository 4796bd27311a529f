"""How long the commands without torch take to start: `python -m tests.benchmarks.startup`.  Best and median of 9."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from formats import save
from tests.support.traces import growing_trace

RUNS = 9


def main() -> None:
    program = str(Path(sys.executable).with_name("tsc"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.tsc"
        save(growing_trace(lengths=range(1024, 1089)), path)
        for words in (["--help"], ["inspect", str(path)], ["test", str(path)]):
            times = []
            for _ in range(RUNS):
                started = time.perf_counter()
                subprocess.run([program, *words], capture_output=True, check=True)
                times.append(time.perf_counter() - started)
            print(f"tsc {words[0]}: best {min(times):.3f} s, median {statistics.median(times):.3f} s")


if __name__ == "__main__":
    main()
