"""One way to run chains, whichever kernel does it.

A kernel is chosen by what the Hamiltonian allows and can be asked for by name:

generic     any terms, any species, any lattice; one chain at a time; what the others are tested against
code        two species on a periodic lattice of one site a cell, interactions within 16 neighbours; one chain at a time
lanes       two species; many chains of one crystal side by side, each with its own couplings
multispin   two species, one kind of pair, semi-grand; 512 chains as the bits of words
jax         two species, semi-grand; many chains on what jax computes on; only on request

All of them sample the same distributions and give the same :class:`Chain`; their random numbers differ, so the
same seed gives other numbers with another kernel. A chain of the lanes kernel does not depend on which others run
beside it as long as `sites` is the same; 512 multi-spin chains are one experiment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..hamiltonian import Compiled
from .accelerated import Accelerated
from .chains import Chain
from .code import Code
from .ensembles import Canonical, Constrained, Ensemble, SemiGrand
from .generic import Generic
from .lanes import Lanes
from .multispin import LANES, MultiSpin
from .work import Kernel, Work

_SIDE_BY_SIDE = 16  # chains from which the lanes kernel beats one chain after another


KERNELS: dict[str, Kernel] = {k.name: k for k in (Generic(), Code(), Lanes(), MultiSpin(), Accelerated())}


def choose(compiled: Compiled, couplings: ArrayLike, ensemble: Ensemble | None = None) -> str:
    """The kernel for chains of one crystal at couplings (chains, n_features).

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((6, 6)))
    >>> choose(compiled, [0.1]), choose(compiled, np.full((64, 1), 0.1)), choose(compiled, np.full((512, 1), 0.1), SemiGrand((0, 0)))
    ('code', 'lanes', 'multispin')
    """
    couplings = np.atleast_2d(np.asarray(couplings, dtype=float))
    work = Work(compiled, ensemble or Canonical(), 1, 1.0, 0.0, np.random.SeedSequence(0))
    order = [] if len(couplings) < LANES // 2 else ["multispin"]
    order += [] if len(couplings) < _SIDE_BY_SIDE else ["lanes"]
    return next(name for name in (*order, "code", "generic") if KERNELS[name].refuses(work, couplings) is None)


def run_chains(
    compiled: Compiled,
    couplings: ArrayLike,
    labels: ArrayLike,
    *,
    samples: int,
    sweeps: float = 2.0,
    burn: float = 200.0,
    seeds: Sequence[np.random.SeedSequence],
    sites: np.random.SeedSequence | None = None,
    ensemble: Ensemble | None = None,
    kernel: str = "auto",
) -> list[Chain]:
    """Run chains of one crystal.

    Parameters
    ----------
    compiled : Compiled
    couplings : array_like, shape (chains, n_features)
        In kT.
    labels : array_like of int, shape (chains, n_sites) or (n_sites,)
        Start configurations; in the canonical ensemble their compositions are kept, and must be the same.
    samples : int
        Snapshots to record, of each chain.
    sweeps, burn : float
        Sweeps between records, and before the first. A canonical sweep attempts as many swaps of unlike atoms as
        there are atoms that are not of the commonest species, any other one as many flips as sites.
    seeds : sequence of numpy.random.SeedSequence
        One a chain.
    sites : numpy.random.SeedSequence, optional
        Of the sites that lanes share; the default is one for all crystals.
    ensemble : Canonical, SemiGrand or Constrained
        Canonical if not given.
    kernel : str
        "auto", "generic", "code", "lanes", "multispin" or "jax"; what ran is in :attr:`Chain.kernel`.

    Returns
    -------
    list of Chain

    Raises
    ------
    InputError
        If the arrays do not fit, a canonical start holds one species only, or the kernel asked for cannot do this.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((4, 4)))
    >>> seeds = np.random.SeedSequence(1).spawn(20)
    >>> chains = run_chains(compiled, np.zeros((20, 1)), [0, 1] * 8, samples=200, seeds=seeds)
    >>> chains[0].kernel, bool(abs(np.mean([c.features.mean() for c in chains]) - 32 * 16 / 30) < 0.3)
    ('lanes', True)
    """
    couplings = np.atleast_2d(np.asarray(couplings, dtype=float))
    labels = np.array(np.broadcast_to(np.asarray(labels, dtype=np.uint8), (len(couplings), np.shape(labels)[-1])))
    ensemble = ensemble or Canonical()
    _check(compiled, couplings, labels, ensemble, len(seeds))
    work = Work(compiled, ensemble, samples, sweeps, burn, sites or np.random.SeedSequence(0))
    chosen = choose(compiled, couplings, ensemble) if kernel == "auto" else kernel
    if chosen not in KERNELS:
        raise InputError(f"kernel {kernel!r} is unknown; expected auto, {', '.join(KERNELS)}")
    if (reason := KERNELS[chosen].refuses(work, couplings)) is not None:
        raise InputError(f"the {chosen} kernel cannot run this: {reason}; ask for 'auto'")
    return KERNELS[chosen].run(work, couplings, labels, seeds)


def run_chain(
    compiled: Compiled,
    couplings: ArrayLike,
    labels: ArrayLike,
    *,
    samples: int,
    sweeps: float = 2.0,
    burn: float = 200.0,
    seed: np.random.SeedSequence,
    ensemble: Ensemble | None = None,
    kernel: str = "auto",
) -> Chain:
    """Run one chain: :func:`run_chains` with couplings (n_features,), one start (n_sites,) and one seed.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> compiled = h.compile(h.lattice.supercell((4, 4)))
    >>> chain = run_chain(compiled, [0.0], [0, 1] * 8, samples=2000, seed=np.random.SeedSequence(1))
    >>> bool(abs(chain.features.mean() - 32 * 16 / 30) < 0.3)   # 32 bonds, each unlike with probability 2 (1/2) (8/15)
    True
    """
    one, start = np.asarray(couplings, dtype=float).reshape(1, -1), np.asarray(labels).reshape(1, -1)
    length = {"samples": samples, "sweeps": sweeps, "burn": burn}
    return run_chains(compiled, one, start, seeds=[seed], ensemble=ensemble, kernel=kernel, **length)[0]


def _check(compiled: Compiled, couplings: NDArray[np.float64], labels: NDArray[np.uint8], ensemble: Ensemble, seeds: int) -> None:
    if couplings.shape[1] != compiled.n_features or labels.shape[1] != compiled.n_sites or labels.max() >= compiled.n_species:
        raise InputError(
            f"{couplings.shape[1]} couplings and {labels.shape[1]} labels given; expected {compiled.n_features} couplings and "
            f"{compiled.n_sites} labels below {compiled.n_species}"
        )
    if seeds != len(couplings):
        raise InputError(f"{seeds} seeds given for {len(couplings)} chains; expected one each")
    if isinstance(ensemble, SemiGrand) and len(ensemble.potential) != compiled.n_species:
        raise InputError(f"chemical potentials {list(ensemble.potential)} given; expected {compiled.n_species}, one a species")
    if isinstance(ensemble, Constrained) and compiled.n_species != 2:
        raise InputError(f"{compiled.n_species} species given; expected two in the constrained ensemble")
    if isinstance(ensemble, Canonical):
        counts = [np.bincount(row, minlength=compiled.n_species) for row in labels]
        if counts[0].max() == labels.shape[1]:
            raise InputError("a canonical chain needs at least two species present; found one")
        if any((c != counts[0]).any() for c in counts):
            raise InputError("canonical starts of different compositions given; run them in calls of their own")
