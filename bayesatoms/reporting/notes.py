"""What the numbers mean, in words: sign conventions, and what the images cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..hamiltonian import Cluster, Field, Pair, Term
from ..inference.comparison import Comparison
from ..inference.identifiability import orientations, redundant_pairs
from ..inference.posterior import Result
from ..lattice import Lattice

_PRIOR_BOUND = 0.9  # posterior sd over prior sd, above which the images say next to nothing
_ORDINAL = {1: "nearest", 2: "second", 3: "third", 4: "fourth"}


def meaning(term: Term, lattice: Lattice) -> str:
    """What a coupling counts and what its sign means, in one sentence.

    Examples
    --------
    >>> meaning(Pair("Mo", "Re"), Lattice.triangular(0.316))
    'energy of a Mo–Re pair of nearest neighbours (0.316 nm); above 0 they avoid each other, below 0 they prefer each other'
    """
    if isinstance(term, Pair):
        apart = lattice.shell_distances(term.shell)[-1]
        along = "" if term.direction is None else f" along direction {term.direction}"
        sign = "above 0 they avoid each other, below 0 they prefer each other"
        shell = _ORDINAL.get(term.shell, f"shell-{term.shell}")
        return f"energy of a {term.a}–{term.b} pair of {shell} neighbours ({apart:.3g} nm){along}{_layer(term)}; {sign}"
    if isinstance(term, Field):
        where = "" if term.sublattice is None else f" of sublattice {term.sublattice}"
        return f"energy of a {term.species} on a site{where}{_layer(term)}; above 0 it is driven out"
    if isinstance(term, Cluster):
        spread = "in all orientations" if term.orbit_of == "all" else "in the one orientation declared"
        body = f"energy of a ({', '.join(term.species)}) cluster of {len(term.species)} sites, {spread}{_layer(term)}"
        return f"{body}; above 0 such clusters are rare, below 0 frequent"
    return "energy of each occurrence of the term; above 0 it is rare, below 0 frequent"


def _layer(term: Any) -> str:
    return "" if term.layer is None else f" within layer {term.layer}"


def prior_text(prior: Any) -> str:
    """A prior as one would write it.

    Examples
    --------
    >>> from numpyro import distributions as dist
    >>> prior_text(dist.Normal(0, 2))
    'Normal(0, 2)'
    """
    values = [getattr(prior, name, None) for name in prior.arg_constraints]
    known = [v for v in values if v is not None and np.ndim(v) == 0]
    return f"{type(prior).__name__}({', '.join(f'{float(v):g}' for v in known)})"


# ---------------------------------------------------------------------- what the images cannot tell


def identifiability(result: Result, comparison: Comparison) -> list[str]:
    """What these images and this statistic cannot tell apart, a sentence each."""
    models = [fit.model for fit in result.fits.values()]
    found = [note for model in models for note in (*orientations(model, result.statistic.environments), *redundant_pairs(model))]
    found += [note for note in (result.identified.sentences if result.identified is not None else ()) if note not in found]
    found += _prior_bound(result)
    if result.statistic.dropped:
        dropped, kept = ", ".join(result.statistic.dropped), ", ".join(result.statistic.names[result.statistic.n_composition :])
        found.append(
            f"In every crystal the counts of {dropped} follow from those of {kept} and the composition: the statistic lists them once."
        )
    nested = [name.removeprefix("nested: ").split(" in ") for name in comparison.checks if name.startswith("nested: ")]
    found += [
        f"{inner} is {outer} at special couplings: {outer} can only fit as well or better."
        for inner, outer in nested
        if result[inner].draws.size
    ]
    return found


def _prior_bound(result: Result) -> list[str]:
    """Couplings whose posterior is hardly narrower than the prior."""
    found = []
    for fit in result.fits.values():
        for name, sd in zip(fit.model.names, _sd(fit.draws), strict=True):
            width = float(np.sqrt(np.asarray(fit.model.prior(name).variance)))
            if np.isfinite(width) and sd > _PRIOR_BOUND * width:
                found.append(f"{fit.model.name}: {name} is as uncertain as before the images were seen (sd {sd:.2f}, prior {width:.2f}).")
    return found


def _sd(draws: np.ndarray) -> Sequence[float]:
    return draws.std(axis=0, ddof=1).tolist() if draws.size else []
