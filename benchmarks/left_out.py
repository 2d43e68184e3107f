"""The published images, each predicted from the three others by every model: python benchmarks/left_out.py [--seed N] [--workers N]

Prints the table and the seconds that the two steps took. By hand, not in the tests.
"""

from __future__ import annotations

import argparse
import time

from bayesatoms import catalogue
from bayesatoms.inference.left_out import leave_one_image_out
from bayesatoms.inference.posterior import infer


def main() -> None:
    """Infer, leave out, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    found, clock = catalogue.load("mos2_res2"), time.perf_counter()
    result = infer(list(found.models), list(found.data), seed=given.seed, workers=given.workers)
    clock, inferred = time.perf_counter(), time.perf_counter() - clock
    table = leave_one_image_out(result, seed=given.seed, workers=given.workers)
    print(table)
    print(f"infer {inferred:.1f} s, leave out {time.perf_counter() - clock:.1f} s, {table.chains} chains more.")


if __name__ == "__main__":
    main()
