"""Progress of long work: a callback (stage, done, total), or bars on stderr. A total of 0 is unknown."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str, int, int], None]


class Bars:
    """One tqdm bar a stage, on stderr, with its rate and the time left; a bar starts anew when its stage does.

    Examples
    --------
    >>> bars = Bars(quiet=True)
    >>> bars("simulate", 1, 2)
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self.quiet:
            return
        from tqdm import tqdm

        if self._bar is None or stage != self._stage or done <= self._bar.n:
            self.close()
            self._bar, self._stage = tqdm(total=total or None, desc=f"{stage:>12}", unit="", file=sys.stderr, dynamic_ncols=True), stage
        self._bar.update(done - self._bar.n)
        if 0 < total <= done:
            self.close()

    def close(self) -> None:
        """Finish the bar that is open, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def reporter(progress: bool | Progress | None) -> Progress:
    """The callback behind a `progress` argument: None or False is silent, True draws bars."""
    if callable(progress):
        return progress
    return Bars(quiet=not progress)
