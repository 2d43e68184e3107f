"""Time and memory of the main job, stage by stage: python benchmarks/demo.py [workers ...]

Runs `bayesatoms demo` in a process and a folder of its own for each number of workers (default 1 and
2), the first with empty compilation caches of its own, and prints wall time, processor time, peak
memory and the stages. By hand, not in the tests: quote medians of several runs, on an idle machine.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(workers: int, caches: Path) -> dict[str, float]:
    """One run; seconds by stage, and the child's own processor time and peak memory."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bayesatoms.cli", "demo", "--quiet", "--workers", str(workers), "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NUMBA_CACHE_DIR": str(caches)})
        wall = time.perf_counter() - clock
        found = json.loads((Path(folder) / "summary.json").read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    stages = {k: float(v) for k, v in found["timing"].items()}
    rate = found["simulation"]["attempted_moves"] / 1e6
    return {"wall s": wall, "cpu s": cpu, "peak GB": after.ru_maxrss / 1e6, **stages, "Mmoves": rate}


def main() -> None:
    """Print one row a run."""
    workers = [int(a) for a in sys.argv[1:]] or [1, 2]
    with tempfile.TemporaryDirectory() as caches:
        for i, n in enumerate(workers):
            row = measure(n, Path(caches))
            start = "cold" if i == 0 else "warm"
            print(f"workers {n} ({start}): " + ", ".join(f"{k} {v:.2f}" for k, v in row.items()), flush=True)


if __name__ == "__main__":
    main()
