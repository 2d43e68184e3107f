"""Time and memory of reading an image, stage by stage: python benchmarks/imaging.py [--quick] [--profile]

Runs `analyse` on rendered pictures, each in a process of its own that keeps to one core, after a small
picture has been read there (compilation is not counted), and prints the stages, the total (median of
three runs, their spread beside it), and the peak memory of the process: with the package loaded and the
pixels, without the drawing. re05 and re78 follow where the shared data are. --quick leaves out the large
picture and repeats nothing; --profile prints where the large one spends its time. By hand, not in the
tests, on an idle machine: the load is printed with the figures.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import bayesatoms as ba

SIZES = {"538 x 538": (538, 500), "2048 x 2048": (2048, 10_000)}  # pixels a side, sites of the lattice; as many columns beside them
LARGE = "2048 x 2048"
STAGES = ("register", "fit_columns", "classify")
METAL = ba.Lattice.triangular(0.316)
SPECIES = ("Mo", "Re")
DATA = Path(os.environ.get("BAYESATOMS_TESTDATA", Path(__file__).parents[2] / "shared" / "data")) / "mores2"
COLUMNS = ("sites", "columns", *STAGES, "rest", "total", "spread", "processor", "peak GB")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def picture(side: int, sites: int) -> np.ndarray:
    """A square picture of about so many metal sites, with as many sulphur columns beside them; noise, drift and a ramp."""
    spacing = side / np.sqrt(sites * np.sqrt(3) / 2)
    cells = int(np.ceil(2.1 * side / spacing))  # a rhombus, turned, that holds the picture
    rng = np.random.default_rng(sites)
    alloy = ba.Configuration.random(METAL, SPECIES, (cells, cells), (0.6, 0.4), rng, periodic=False)
    return ba.render(
        alloy, intensity={"Mo": 0.45, "Re": 1.0}, beside=[(1 / 3, 1 / 3, 0.25)], spacing=spacing, rotation=17, shape=(side, side),
        drift=(0.005, 0.0), background=0.4, ramp=(0.2, 0.1), dose=400, noise=0.04, rng=rng,
    ).image.data  # fmt: skip


def read(path: Path) -> ba.Image:
    return ba.Image(np.load(path), path.stem) if path.suffix == ".npy" else ba.read_image(path)


def child(path: Path, small: Path, repeats: int, profile: bool) -> dict:
    """What one process measures; each stage is timed where `analyse` calls it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from bayesatoms.imaging import micrograph

    spent = dict.fromkeys(STAGES, 0.0)

    def timed(stage, function):
        def call(*given, **named):
            clock = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[stage] += time.perf_counter() - clock

        return call

    micrograph.analyse(read(small), METAL, SPECIES, bright="Re")
    for stage in STAGES:
        setattr(micrograph, stage, timed(stage, getattr(micrograph, stage)))
    image, runs = read(path), []
    for _ in range(repeats):
        spent.update(dict.fromkeys(STAGES, 0.0))
        clock, processor = time.perf_counter(), time.process_time()
        m = micrograph.analyse(image, METAL, SPECIES, bright="Re")
        total = time.perf_counter() - clock
        runs.append({**spent, "rest": total - sum(spent.values()), "total": total, "processor": time.process_time() - processor})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    found = {"sites": m.n, "columns": len(m.columns.positions), "peak GB": peak, "runs": runs, "profile": ""}
    if profile:
        recorded, text = cProfile.Profile(), io.StringIO()
        recorded.runcall(micrograph.analyse, image, METAL, SPECIES, bright="Re")
        pstats.Stats(recorded, stream=text).sort_stats("tottime").print_stats(12)
        found["profile"] = text.getvalue()
    return found


def measure(path: Path, small: Path, repeats: int, profile: bool) -> dict:
    command = [sys.executable, __file__, "--child", str(path), str(small), str(repeats), str(int(profile))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **dict.fromkeys(THREADS, "1")})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print one row a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the large picture, one run each")
    parser.add_argument("--profile", action="store_true", help="also where the large picture spends its time")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        path, small, repeats, profile = given.child
        print(json.dumps(child(Path(path), Path(small), int(repeats), profile == "1")))
        return
    print(f"load {os.getloadavg()[0]:.2f}; one core of {os.cpu_count()}; seconds")
    print(f"{'picture':<13}" + "".join(f"{title:>12}" for title in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.npy"
        np.save(small, picture(220, 100))
        paths = [DATA / f"{name}.tif" for name in ("re05", "re78")] if DATA.is_dir() else []
        for name, size in SIZES.items():
            if not (given.quick and name == LARGE):
                paths.append(Path(folder) / f"{name}.npy")
                np.save(paths[-1], picture(*size))
        for path in paths:
            found = measure(path, small, 1 if given.quick else 3, given.profile and path.stem == LARGE)
            runs = sorted(found["runs"], key=lambda r: r["total"])
            middle = runs[len(runs) // 2]
            numbers = [f"{middle[s]:.2f}" for s in (*STAGES, "rest", "total")]
            numbers += [f"{runs[0]['total']:.2f}-{runs[-1]['total']:.2f}", f"{middle['processor']:.2f}", f"{found['peak GB']:.2f}"]
            row = f"{path.stem:<13}" + "".join(f"{n:>12}" for n in (found["sites"], found["columns"], *numbers))
            print(row, found["profile"], sep="\n" if found["profile"] else "", flush=True)
    print(f"load {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
