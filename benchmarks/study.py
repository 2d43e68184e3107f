"""Time of an analysis without its pictures: python benchmarks/study.py [--workers N ...] [--rounds N]

The published study (random alloy, pairs, two shells of pairs, triangles; four images; both likelihoods) through `infer`
and `compare`. Every run is a process of its own and counts what it imports beside bayesatoms itself. The first finds
empty caches and compiles everything; those after it find what that one left. Then fewer images and fewer models, to
show how time grows with them. By hand, on an idle machine: quote medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

STAGES = ("simulate", "sample", "compare", "calibration")


def measure(workers: int, images: int, models: int) -> dict[str, float]:
    """Seconds of each stage in this process, with the first so many images and models."""
    from bayesatoms import catalogue
    from bayesatoms.inference.comparison import compare
    from bayesatoms.inference.posterior import infer

    found = catalogue.load("mos2_res2")
    # those first that say most: one image of a rare species alone leaves couplings open far into the ordered phases
    known = sorted(found.data, key=lambda o: -float(o.composition.prod()))
    clock = time.perf_counter()
    result = infer(list(found.models)[:models], known[:images], seed=0, workers=workers, progress=False)
    seconds = dict(result.timing)
    clock, seconds["infer"] = time.perf_counter(), time.perf_counter() - clock
    compare(result)
    clock, seconds["compare"] = time.perf_counter(), time.perf_counter() - clock
    _ = result.calibration
    return {**seconds, "calibration": time.perf_counter() - clock, "chains": result.simulation["chains"]}


def run(caches: str, workers: int, images: int = 4, models: int = 4) -> dict[str, float]:
    """The same in a process of its own, with caches of this benchmark."""
    command = [sys.executable, __file__, "--child", str(workers), str(images), str(models)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": f"{caches}/numba", "BAYESATOMS_CACHE": f"{caches}/programs"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def show(title: str, runs: list[dict[str, float]]) -> None:
    """Medians of some runs."""
    each = {stage: median(r[stage] for r in runs) for stage in (*STAGES, "chains")}
    total = median(r["infer"] + r["compare"] for r in runs)
    stages = ", ".join(f"{stage} {each[stage]:.1f}" for stage in STAGES)
    print(f"{title:<42} infer + compare {total:6.1f} s   ({stages}; {each['chains']:.0f} chains)", flush=True)


def main() -> None:
    """Print one line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(*given.child)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}; median of {given.rounds}")
    most = max(given.workers)
    with tempfile.TemporaryDirectory() as caches:
        show(f"everything compiled, {most} workers", [run(caches, most)])
        rounds: dict[int, list[dict[str, float]]] = {n: [] for n in given.workers}
        for _ in range(given.rounds):  # in turn: a busy minute of the machine meets all alike
            for n in given.workers:
                rounds[n].append(run(caches, n))
        for n, runs in rounds.items():
            show(f"4 images, 4 models, {n} worker{'s' * (n > 1)}", runs)
        for images, models in ((1, 4), (2, 4), (4, 2)):
            run(caches, most, images, models)
            runs = [run(caches, most, images, models) for _ in range(given.rounds)]
            show(f"{images} image{'s' * (images > 1)}, {models} models, {most} workers", runs)
    print(f"load {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
