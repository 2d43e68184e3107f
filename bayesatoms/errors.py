"""The errors bayesatoms raises on purpose.

Every message says what was found, what was expected and what to do; the command line turns
them into one sentence on stderr and the exit code carried here.
"""

from __future__ import annotations


class BayesAtomsError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(BayesAtomsError, ValueError):
    """Something the user handed in cannot be used: a file, a field, an argument."""

    exit_code = 2


class CheckError(BayesAtomsError, RuntimeError):
    """A result failed one of its own checks (support, convergence, nesting) and is not given out."""

    exit_code = 1


class RunError(BayesAtomsError, RuntimeError):
    """The machine failed, not the input: a full disk, workers that die. What is finished is kept; run again to continue."""

    exit_code = 3
