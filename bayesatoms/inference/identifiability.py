"""What can be told apart at all, asked before anything is simulated.

Random crystals of each image's composition are enough: on them the exact relations among terms hold exactly,
and Cov(F) is the Fisher information about the couplings at the random alloy. A term enters as the environment
classes see it (its mean over each class), so orientations that the classes count alike are one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..configuration import Configuration
from ..environments import Environments
from ..hamiltonian import Cluster, Hamiltonian, Orbit, Pair, Term
from ..lattice import Lattice
from ..observation import Observation
from ..window import Window, tally
from .priors import prior_sd
from .statistic import contrast, union

_CRYSTALS = 240  # random ones, for each image
_NULL = 1e-9  # of the largest information: exact relations leave rounding only
_BLIND = 1.0  # expected sd over the prior's, above which an image says next to nothing


@dataclass(frozen=True, eq=False)
class Identified:
    """One model: what its couplings can be told by, at the random alloy.

    Attributes
    ----------
    information : ndarray, shape (images, k, k)
        Fisher information of each image.
    null : ndarray, shape (m, k)
        Directions about which no image says anything, each with its largest entry 1.
    condition : float
        Largest over least positive eigenvalue of the information of all images, scaled to unit diagonal: how alike
        the couplings act. 1 for independent ones.
    sd : ndarray, shape (k,)
        Least expected standard deviation of each coupling, kT; infinite where a null direction moves it.
    image_sd : ndarray, shape (images, k)
        The same for each image alone.
    """

    names: tuple[str, ...]
    information: NDArray[np.float64]
    null: NDArray[np.float64]
    condition: float
    sd: NDArray[np.float64]
    image_sd: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Identifiability:
    """The models by name, and what was found in words; `ok` if no model has a direction that no image sees."""

    models: dict[str, Identified]
    images: tuple[str, ...]
    sentences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return all(not len(m.null) for m in self.models.values())

    def __str__(self) -> str:
        return "\n".join(self.sentences) or "All couplings of all models can be told apart."


def identifiability(models: Sequence[Hamiltonian], observations: Sequence[Observation], *, seed: int = 0) -> Identifiability:
    """Which couplings, or combinations of them, the images can tell, by image and together.

    Parameters
    ----------
    models : sequence of Hamiltonian
    observations : sequence of Observation
        Counted by the same environments.
    seed : int
        Of the random crystals.

    Returns
    -------
    Identifiability
        Printing it gives a sentence for everything that cannot be told. Label errors only make it worse.

    Raises
    ------
    InputError
        If the environments do not show a term.

    Examples
    --------
    At fixed composition two species leave one pair coupling a shell:

    >>> from bayesatoms.lattice import Lattice
    >>> square = Lattice.square()
    >>> h = Hamiltonian("H", Pair("A", "B"), Pair("B", "B", name="bb"), lattice=square, species=("A", "B"))
    >>> image = Observation.from_labels(np.random.default_rng(0).integers(0, 2, (16, 16)), square, h.species)
    >>> found = identifiability([h], [image])
    >>> found.ok, found.models["H"].null.round(6).tolist()
    (False, [[0.5, 1.0]])
    >>> print(found)
    H: 2 pair couplings on shell 1; at fixed composition only 1 of them can be told apart for 2 species.
    H: no image says anything about 0.5 w1 + bb by itself; only the prior will.
    """
    orbits = union({m.name: dict(zip(m.names, m.orbits, strict=True)) for m in models})
    names = tuple(orbits)
    environments = observations[0].environments
    rows = np.array([contrast(environments, orbit, name) for name, orbit in orbits.items()]).reshape(len(names), environments.n_classes)
    sequences = np.random.SeedSequence(seed).spawn(len(observations))
    whole = np.array([_information(o, rows, np.random.default_rng(s)) for o, s in zip(observations, sequences, strict=True)])
    found, sentences = {}, []
    for model in models:
        if not model.terms:
            continue
        chosen = [names.index(n) for n in model.names]
        found[model.name] = identified(model.names, whole[:, chosen][:, :, chosen])
        sentences += [*redundant_pairs(model), *orientations(model, environments), *_null_sentences(model, found[model.name])]
        sentences += _blind_images(model, found[model.name], observations)
    sentences += _dependent(names, whole, models)
    return Identifiability(found, tuple(o.name for o in observations), tuple(sentences))


def identified(names: tuple[str, ...], information: NDArray[np.float64]) -> Identified:
    """Null directions, condition and least standard deviations from Fisher informations (images, k, k).

    Examples
    --------
    >>> found = identified(("a", "b"), np.array([[[4.0, 4.0], [4.0, 4.0]]]))
    >>> found.null.tolist(), found.sd.tolist()
    ([[1.0, -1.0]], [inf, inf])
    """
    total = information.sum(axis=0)
    size = np.sqrt(np.maximum(np.diag(total), 1e-300))
    # relative to each coupling's own information, or a weak term would pass for a null one
    values, vectors = np.linalg.eigh(total / np.outer(size, size))
    null = values < _NULL * max(len(names), 1)
    directions = (vectors[:, null] / size[:, None]).T if null.any() else np.zeros((0, len(names)))
    directions = _tidy(directions)
    positive = values[~null]
    condition = float(positive.max() / positive.min()) if len(positive) else np.inf
    return Identified(names, information, directions, condition, _least_sd(total), np.array([_least_sd(i) for i in information]))


def _tidy(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """A basis of the same space with as many zeros as row reduction gives, the largest entry of each row 1."""
    rows, done = directions.copy(), 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        pivot = done + int(np.argmax(np.abs(rows[done:, column])))
        if abs(rows[pivot, column]) < 1e-7 * np.abs(rows).max():
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= np.outer(rows[others, column], rows[done])
        done += 1
    rows[np.abs(rows) < 1e-7 * np.abs(rows).max(initial=1e-300)] = 0.0
    return np.array([row / row[np.argmax(np.abs(row) > (1 - 1e-7) * np.abs(row).max())] for row in rows]).reshape(rows.shape)


def _least_sd(information: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(size, size))
    null = values < _NULL * max(len(size), 1)
    blind = (vectors[:, null] ** 2 > 1e-9).any(axis=1)
    variance = (vectors[:, ~null] ** 2 / values[~null]).sum(axis=1) / size**2
    return np.sqrt(np.where(blind, np.inf, variance))


def _information(o: Observation, rows: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Fisher information of the image about all terms at the random alloy: Cov(F) of a crystal times the window's share of it."""
    supercell, atoms = o.window.box(o.environments, o.true_composition)
    labels = np.repeat(np.arange(len(atoms), dtype=np.uint8), atoms)
    crystals = np.array([rng.permutation(labels) for _ in range(_CRYSTALS)])
    whole = Window.of(
        Configuration(o.environments.lattice, o.environments.species, labels.reshape((*supercell.shape, -1)), supercell.periodic)
    )
    seen = whole.complete(o.environments)
    features = tally(o.environments, seen, crystals) @ rows.T
    apart = features - features.mean(axis=0)
    cov = apart.T @ apart / (_CRYSTALS - 1) * o.n / sum(len(r) for r in seen)
    # what the composition fixes does not vary but for rounding
    fixed = np.diag(cov) < 1e-12 * np.maximum((features**2).mean(axis=0), 1.0)
    cov[fixed], cov[:, fixed] = 0.0, 0.0
    return cov


# ---------------------------------------------------------------------- in words


def combination(names: Sequence[str], direction: NDArray[np.float64]) -> str:
    """A direction as a sum of couplings.

    Examples
    --------
    >>> combination(("up", "down", "w2"), np.array([1.0, -1.0, 0.0]))
    'up - down'
    """
    text = ""
    for name, value in zip(names, direction, strict=True):
        if value:
            size = "" if abs(abs(value) - 1) < 1e-6 else f"{abs(value):.3g} "
            sign = "-" if value < 0 else "+"
            text += f" {sign} {size}{name}" if text else f"{'-' if value < 0 else ''}{size}{name}"
    return text


def _null_sentences(model: Hamiltonian, found: Identified) -> list[str]:
    return [
        f"{model.name}: no image says anything about {combination(found.names, row)} by itself; only the prior will." for row in found.null
    ]


def _blind_images(model: Hamiltonian, found: Identified, observations: Sequence[Observation]) -> list[str]:
    """Images that say less about every coupling of a model than its prior does."""
    if any(t.prior is None for t in model.terms) or len(observations) < 2:
        return []
    blind = [o.name for o, sd in zip(observations, found.image_sd, strict=True) if np.all(sd > _BLIND * prior_sd(model))]
    if not blind:
        return []
    verb = "says" if len(blind) == 1 else "say"
    return [f"{model.name}: {', '.join(blind)} {verb} less about {', '.join(model.names)} than the prior does."]


def _dependent(names: tuple[str, ...], whole: NDArray[np.float64], models: Sequence[Hamiltonian]) -> list[str]:
    """Terms of different models that are one another's combinations: models then overlap, which the comparison allows for."""
    found = []
    for row in identified(names, whole).null:
        owners = [{m.name for m in models if n in m.names} for n, v in zip(names, row, strict=True) if v]
        if len(owners) > 1 and not set.intersection(*owners):
            found.append(
                f"In these images {combination(names, row)} is no interaction at all: the models that hold these terms are not independent."
            )
    return found


def redundant_pairs(model: Hamiltonian) -> list[str]:
    """More pair couplings on a shell than a fixed composition leaves identifiable, k (k - 1) / 2 for k species.

    Examples
    --------
    >>> from bayesatoms.lattice import Lattice
    >>> redundant_pairs(Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B")))
    []
    """
    k = len(model.species)
    most = k * (k - 1) // 2
    shells = Counter((t.shell, t.direction, t.layer) for t in model.terms if isinstance(t, Pair))
    return [
        f"{model.name}: {n} pair couplings on shell {shell}; at fixed composition only {most} of them can be told apart for {k} species."
        for (shell, _, _), n in shells.items()
        if n > most
    ]


def orientations(model: Hamiltonian, environments: Environments) -> list[str]:
    """Terms on one of several orientations that the environment classes count alike.

    Examples
    --------
    ``orientations(model, result.statistic.environments)``.
    """
    alike: dict[int, list[str]] = {}
    for term, orbit in zip(model.terms, model.orbits, strict=True):
        own = contrast(environments, orbit, term.name)
        others = _other_orientations(term, orbit, model.lattice, model.species)
        same = [o for o in others if np.allclose(contrast(environments, o, term.name), own, atol=1e-9)]
        if same:
            alike.setdefault(len(same) + 1, []).append(term.name)
    return [
        f"{model.name}: {', '.join(names)} {'act' if len(names) > 1 else 'acts'} on one of {n} orientations that the environment classes "
        "count alike: the images cannot tell which orientation carries the interaction."
        for n, names in alike.items()
    ]


def _other_orientations(term: Term, orbit: Orbit, lattice: Lattice, species: Sequence[str]) -> list[Orbit]:
    """The same term turned into the other orientations that the lattice's symmetry has."""
    if isinstance(term, Pair) and term.direction is not None:
        others = [d for d in range(len(lattice.directions(term.shell))) if d != term.direction]
        return [Pair(term.a, term.b, term.shell, d, term.layer).orbit(lattice, species) for d in others]
    if isinstance(term, Cluster) and term.orbit_of == "one":
        every = Cluster(term.species, term.sites, orbit="all").orbit(lattice, species)
        return [Orbit(sites[None], orbit.table, term.layer) for sites in every.sites[1:]]  # the first is the cluster itself
    return []
