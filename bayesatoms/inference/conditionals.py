"""Leave-one-atom-out conditionals: the probability of one atom given all others.

For a lattice Hamiltonian log p(s_i | rest, w) is in closed form: the clusters that contain site i,
once for each species it might carry, and a free chemical potential per image (which stands for the
fixed composition). Atoms with equal surroundings have equal conditionals, so an image reduces to a
short table of distinct rows with multiplicities; from class counts alone the table exists as long as
every cluster through the centre lies inside the environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..configuration import UNSEEN
from ..environments import Environments
from ..hamiltonian import Compiled, Hamiltonian, Orbit
from ..observation import Observation


@dataclass(frozen=True, eq=False)
class Conditionals:
    """Distinct local situations of one image under one model.

    Attributes
    ----------
    features : ndarray, shape (rows, k, n_terms)
        Features of the clusters through the atom if it were species s.
    seen : ndarray, shape (rows,)
        The species it carries.
    weight : ndarray, shape (rows,)
        How many atoms are in this situation.
    exact : bool
        False where a class mixes environments that the model tells apart (a triangle orientation
        under the full point group): then class means stand in, good for a start only.
    """

    features: NDArray[np.float64]
    seen: NDArray[np.int64]
    weight: NDArray[np.float64]
    exact: bool

    def log_probability(self, couplings: NDArray[np.float64], potential: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p(s_i | rest) of every row, shape (rows,)."""
        logits = potential - self.features @ couplings
        logits -= logits.max(axis=1, keepdims=True)
        return logits[np.arange(len(self.seen)), self.seen] - np.log(np.exp(logits).sum(axis=1))

    def profile(self, couplings: NDArray[np.float64]) -> NDArray[np.float64]:
        """log p of every row at many couplings (m, n_terms), with the chemical potentials that reproduce the composition.

        The free field stands for the fixed composition. Returns shape (m, rows).
        """
        k = self.features.shape[1]
        logits = -np.einsum("rsa,ma->mrs", self.features, couplings)
        counts = np.bincount(self.seen, weights=self.weight, minlength=k)
        present = np.flatnonzero(counts)
        potential = np.full((len(couplings), k), -np.inf)
        potential[:, present] = 0.0
        for _ in range(60):  # Newton on a concave function of k - 1 numbers, for all couplings at once
            p = _softmax(potential[:, None, :] + logits)
            mass = np.einsum("r,mrs->ms", self.weight, p)[:, present[1:]]
            gradient = counts[present[1:]] - mass
            inner = p[:, :, present[1:]]
            hessian = -np.einsum("r,mrs,mrt->mst", self.weight, inner, inner)
            hessian[:, np.arange(mass.shape[1]), np.arange(mass.shape[1])] += mass + 1e-12
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
            step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, initial=1e-300), 1e-300))[:, None]
            potential[:, present[1:]] += step
            if np.abs(gradient).max(initial=0.0) < 1e-9 * counts.sum():
                break
        return np.log(_softmax(potential[:, None, :] + logits)[:, np.arange(len(self.seen)), self.seen])


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def conditionals(model: Hamiltonian, observation: Observation) -> Conditionals | None:
    """The conditionals of an image under a model; None where the image does not show enough around any atom."""
    if observation.configuration is not None:
        return _from_configuration(model, observation)
    return _from_counts(model, observation)


def _from_counts(model: Hamiltonian, observation: Observation) -> Conditionals | None:
    environments, k = observation.environments, len(model.species)
    local, exact = np.zeros((environments.n_classes, k, len(model.terms))), True
    for a, orbit in enumerate(model.orbits):
        raw = _local(environments, orbit)
        if raw is None:
            return None
        for s in range(k):
            local[:, s, a], same = environments.average(raw[s])
            exact &= same
    rows = np.flatnonzero(observation.counts)
    return Conditionals(local[rows], environments.centre[rows], observation.counts[rows].astype(float), exact)


def _local(environments: Environments, orbit: Orbit) -> NDArray[np.float64] | None:
    """Clusters of a term through the centre with the centre replaced by each species, (k, raw); None if some reach further."""
    k = len(environments.species)
    raw = np.zeros((k, environments.offsets[-1]))
    for b in range(len(environments.templates)):
        fits = [f for f in environments.fits(b, orbit.sites) if 0 in f[1]]
        if len(fits) != int((orbit.sites[:, :, -1] == b).sum()) or orbit.layer is not None:
            return None
        for s in range(k):
            digits = environments.digits(b).copy()
            digits[:, 0] = s
            for _, positions in fits:
                raw[s, environments.offsets[b] : environments.offsets[b + 1]] += orbit.table[tuple(digits[:, list(positions)].T)]
    return raw


def _from_configuration(model: Hamiltonian, observation: Observation) -> Conditionals | None:
    configuration = observation.configuration
    assert configuration is not None
    labels, compiled = configuration.flat, model.compile(configuration.supercell)
    features, complete = _site_features(compiled, labels, _bulk_touches(model.orbits, configuration.labels.shape[-1]))
    chosen = np.flatnonzero(complete & (labels != UNSEEN))
    if not len(chosen):
        return None
    table = np.column_stack([features[chosen].reshape(len(chosen), -1), labels[chosen]])
    rows, weight = np.unique(table.round(9), axis=0, return_counts=True)
    shape = (len(rows), compiled.n_species, compiled.n_features)
    return Conditionals(rows[:, :-1].reshape(shape), rows[:, -1].astype(np.int64), weight.astype(float), True)


def _bulk_touches(orbits: Sequence[Orbit], n_basis: int) -> NDArray[np.int64]:
    """How many clusters go through a site of each basis position deep inside a crystal (shared sites counted once)."""
    distinct = {(o.sites.tobytes(), o.sites.shape, o.layer): o.sites for o in orbits}
    return sum((np.bincount(s[:, :, -1].reshape(-1), minlength=n_basis) for s in distinct.values()), np.zeros(n_basis, dtype=np.int64))


def _site_features(
    compiled: Compiled, labels: NDArray[np.integer], bulk: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features through each site for every species it might carry (n, k, n_terms), and whether all its clusters are wholly seen."""
    k, n = compiled.n_species, len(labels)
    features, touches = np.zeros((n, k, compiled.n_features)), np.zeros(n, dtype=np.int64)
    for rows, (_, base) in zip(compiled.members, compiled.groups, strict=True):
        for position in range(rows.shape[1]):
            others = np.delete(rows, position, axis=1)
            whole = (labels[others] != UNSEEN).all(axis=1)
            site, stride = rows[whole, position], k**position
            code = labels[rows[whole]].astype(np.int64) @ k ** np.arange(rows.shape[1]) - labels[site].astype(np.int64) * stride
            np.add.at(touches, site, 1)
            for s in range(k):
                np.add.at(features[:, s], site, compiled.tables[base + code + s * stride])
    return features, touches == np.tile(bulk, n // len(bulk))
