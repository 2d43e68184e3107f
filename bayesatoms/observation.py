"""Observation: what one image says, ready for inference.

A histogram of environment classes, the window it was seen through, the label-error matrix and the
composition; with them, where there is one, the labelled configuration and how sure its labels are.
Make one from published counts, from a table of labelled sites, or from an array of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .configuration import UNSEEN, Configuration
from .environments import Environments
from .errors import InputError
from .lattice import Lattice
from .response import Response, check_label_error, check_probabilities, settled
from .tables import read_table
from .window import Window, tally


@dataclass(frozen=True, eq=False)
class Observation:
    """The histogram of one image and how it was seen.

    Parameters
    ----------
    name : str
    environments : Environments
    counts : ndarray, shape (n_classes,)
        Whole numbers, or soft counts: an environment with uncertain sites counts for every class with the
        probability that it is of it.
    window : Window
    label_error : ndarray, shape (k, k)
        Row = true species, column = probability of being labelled so, or the expected soft label.
    configuration : Configuration, optional
        The hard labels.
    temperature : float, optional
        Formation temperature in K, if known.
    source : dict
        Where the data came from: file, hash, sites left out; stored with every result.
    positions : ndarray, shape (n_seen, 2), optional
        Measured positions of the seen sites in site order, in the unit of the table.
    probabilities : ndarray, shape (n_seen, k), optional
        Soft labels in site order: how probable each species is on each seen site, given its intensity and,
        as the prior, the image's own composition. They are what is counted; simulated atoms get such labels too.

    Examples
    --------
    >>> e = Environments(Lattice.square(), ("A", "B"))
    >>> o = Observation.from_labels(np.eye(6, dtype=int), e.lattice, e.species, name="stripe")
    >>> o.n, o.composition.round(2).tolist(), int(o.counts.sum())
    (16, [0.75, 0.25], 16)
    >>> soft = Observation.from_configuration(o.configuration, probabilities=np.where(np.eye(2)[o.configuration.flat], 0.9, 0.1))
    >>> soft.n, soft.composition.round(2).tolist()
    (16, [0.7, 0.3])
    """

    name: str
    environments: Environments
    counts: NDArray[np.int64] | NDArray[np.float64]
    window: Window
    label_error: NDArray[np.float64]
    configuration: Configuration | None = None
    temperature: float | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    positions: NDArray[np.float64] | None = None
    probabilities: NDArray[np.float64] | None = None

    # ------------------------------------------------------------------ ways to make one

    @classmethod
    def from_counts(
        cls,
        counts: ArrayLike,
        environments: Environments,
        *,
        name: str = "counts",
        sites: int | None = None,
        label_error: ArrayLike | None = None,
        temperature: float | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Observation:
        """An observation from class counts alone, in the order of ``environments.names``.

        The window is unknown then, so a nearly square block with as many complete environments
        stands in for it. `sites`, if given, is checked against the sum of the counts.

        Raises
        ------
        InputError
            If there are too many or too few counts, one is negative or no whole number, all are
            zero, or they do not sum to `sites`.

        Examples
        --------
        >>> e = Environments(Lattice.triangular(), ("Mo", "Re"))
        >>> o = Observation.from_counts([90, 6] + [0] * 11 + [1] + [0] * 12, e, name="dilute")
        >>> o.n, o.composition.round(3).tolist()
        (97, [0.99, 0.01])
        """
        values = np.asarray(counts, dtype=float).reshape(-1)
        if len(values) != environments.n_classes:
            raise InputError(f"{name}: {len(values)} counts given; expected {environments.n_classes}, one a class of {environments!r}")
        wrong = np.flatnonzero(~((values >= 0) & (values == np.round(values)) & np.isfinite(values)))
        if len(wrong):
            raise InputError(f"{name}: count {values[wrong[0]]:g} of class {environments.names[wrong[0]]}; expected whole numbers >= 0")
        total = int(values.sum())
        if total == 0 or (sites is not None and total != sites):
            raise InputError(
                f"{name}: the counts sum to {total}; expected {'at least one' if sites is None else sites} complete environments"
            )
        error = check_label_error(label_error, len(environments.species))
        window = Window.block(environments, total)
        return cls(name, environments, values.astype(np.int64), window, error, None, temperature, dict(source or {}))

    @classmethod
    def from_configuration(
        cls,
        configuration: Configuration,
        *,
        name: str = "configuration",
        environments: Environments | None = None,
        label_error: ArrayLike | None = None,
        temperature: float | None = None,
        source: Mapping[str, Any] | None = None,
        positions: NDArray[np.float64] | None = None,
        probabilities: ArrayLike | None = None,
    ) -> Observation:
        """An observation of a labelled configuration: its complete environments are counted.

        With `probabilities` (n_seen, k), soft labels in site order, the counts are soft and the label errors
        follow from them.

        Raises
        ------
        InputError
            If there is nothing to count, the probabilities are none, or label errors are given beside them.
        """
        environments = environments or Environments(configuration.lattice, configuration.species)
        window = Window.of(configuration)
        rows = window.complete(environments)
        if not sum(len(r) for r in rows):
            raise InputError(f"{name}: none of the {configuration.n_seen} seen sites has all its neighbours; nothing to count")
        k = len(configuration.species)
        if probabilities is None:
            seen = configuration.flat[configuration.flat != UNSEEN].astype(np.uint8)[None]
            counts, error = tally(environments, rows, seen)[0], check_label_error(label_error, k)
        else:
            if label_error is not None:
                raise InputError(f"{name}: both probabilities and label_error given; soft labels carry their errors: leave label_error out")
            probabilities = check_probabilities(probabilities, configuration.n_seen, k)
            counts = _soft_counts(environments, rows, settled(probabilities))
            error = check_label_error(Response.of_soft(probabilities).label_error, k)
        return cls(name, environments, counts, window, error, configuration, temperature, dict(source or {}), positions, probabilities)

    @classmethod
    def from_labels(
        cls, labels: ArrayLike, lattice: Lattice, species: Sequence[str], *, periodic: bool | Sequence[bool] = False, **keywords: Any
    ) -> Observation:
        """An observation of an array of species numbers over the cells (-1 = unseen); keywords as for :meth:`from_configuration`."""
        return cls.from_configuration(Configuration.from_labels(lattice, species, labels, periodic=periodic), **keywords)

    @classmethod
    def from_table(
        cls,
        path: str | Path,
        lattice: Lattice,
        species: Sequence[str],
        *,
        columns: Mapping[str, str] | None = None,
        keep: Mapping[str, Sequence[str]] | None = None,
        name: str | None = None,
        probabilities: str | None = None,
        **keywords: Any,
    ) -> Observation:
        """An observation from a table of labelled positions, indexed onto the lattice.

        Parameters
        ----------
        path : path
            CSV with a header, as `run` and `observe` write it; or xyz, atomap's HDF5, AtomAI's arrays (see `tables.read_table`).
        lattice : Lattice
            Two-dimensional; its `a` need not be the unit of the table.
        species : sequence of str
        columns : mapping, optional
            Which columns hold "x", "y" and "species"; those names themselves by default.
        keep : mapping of column to values, optional
            Only rows with one of these values count (a sublattice, say); rows without a label or
            position are left out, and how many is stored in :attr:`source`.
        name : str, optional
            The file's stem by default.
        probabilities : str, optional
            For soft labels: what the columns with the probability of each species begin with, such as "p_"
            for p_Mo and p_Re (so they are called in exported tables). A label corrected by hand wins over them: it
            is taken as certain where it differs from that in the column `species_read` (the exported label, if there
            is such a column) or else from the most probable species, and where there are no probabilities. How many
            is stored in :attr:`source` as `labels_by_hand`.
        **keywords
            As for :meth:`from_configuration`.

        Raises
        ------
        InputError
            If the file, a column or a lattice is not there, or a label is not among the species.
        """
        from .indexing import index_positions

        path = Path(path)
        table = read_table(path)
        rows, digest = table.records(), table.sha256
        wanted = {"x": "x", "y": "y", "species": "species", **(columns or {})}
        if unknown := set(wanted) - {"x", "y", "species"}:
            raise InputError(f"columns names {sorted(unknown)}; expected x, y, species")
        soft = [] if probabilities is None else [f"{probabilities}{s}" for s in species]
        for column in [*wanted.values(), *soft, *(keep or {})]:
            if column not in rows[0]:
                raise InputError(f"{path}: column {column!r} not found; the table has {', '.join(rows[0])}")
        total = len(rows)
        rows = [r for r in rows if all(r[c] in map(str, values) for c, values in (keep or {}).items())]
        rows = [r for r in rows if all((r[wanted[c]] or "").strip() for c in ("x", "y", "species"))]
        strange = sorted({r[wanted["species"]] for r in rows} - set(species))
        if strange:
            raise InputError(
                f"{path}: column {wanted['species']!r} holds {', '.join(strange)}; expected {', '.join(species)}; "
                "choose rows with keep or declare the species"
            )
        xy = _numbers(path, rows, [wanted["x"], wanted["y"]])
        try:
            indexing = index_positions(xy, lattice)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        sites = indexing.sites[indexing.kept]
        labels = np.array([species.index(r[wanted["species"]]) for r in rows])[indexing.kept]
        configuration = Configuration.from_sites(lattice, species, sites, labels)
        order = np.argsort(configuration.supercell.index(np.column_stack([sites[:, :-1] - sites[:, :-1].min(axis=0), sites[:, -1]])))
        source = {
            "file": path.name,
            "sha256": digest,
            "rows": total,
            "rows_used": len(rows),
            "sites_indexed": len(sites),
            "spacing": float(indexing.spacing),
        }
        keywords = {"name": name or path.stem, "source": source, "positions": xy[indexing.kept][order], **keywords}
        if soft:
            read = [r.get(f"{wanted['species']}_read") or None for r in rows]
            p, by_hand = _corrected(_numbers(path, rows, soft, empty=True), [r[wanted["species"]] for r in rows], read, species)
            keywords["probabilities"] = p[indexing.kept][order]
            if by_hand.any():
                keywords["source"] = {**keywords["source"], "labels_by_hand": int(by_hand.sum())}
        return cls.from_configuration(configuration, **keywords)

    # ------------------------------------------------------------------ what it says

    @property
    def n(self) -> int:
        """Complete environments."""
        return round(self.counts.sum().item())

    @property
    def histogram(self) -> NDArray[np.float64]:
        """Class frequencies, summing to 1."""
        return self.counts / self.n

    @property
    def composition(self) -> NDArray[np.float64]:
        """Fraction of each species among the centres, as labelled."""
        return np.bincount(self.environments.centre, weights=self.counts, minlength=len(self.environments.species)) / self.n

    @property
    def true_composition(self) -> NDArray[np.float64]:
        """Composition with the label errors undone: the simulated box has this one.

        A species that was seen but that the label errors would explain away keeps half an atom of the window.
        """
        undone = np.minimum(np.linalg.solve(self.label_error.T, self.composition), 1.0)
        undone = np.where(self.composition > 0, np.maximum(undone, 0.5 / self.n), np.where(undone > 1e-9, undone, 0.0))
        return undone / undone.sum()

    @property
    def composition_sd(self) -> NDArray[np.float64]:
        """Standard deviation of :attr:`true_composition`: binomial error of the window, carried through the label errors."""
        x = self.composition
        covariance = (np.diag(x) - np.outer(x, x)) / self.n
        if self.probabilities is not None:  # soft labels scatter less than hard ones
            covariance = np.cov(settled(self.probabilities).T, ddof=0) / self.n
        undo = np.linalg.inv(self.label_error.T)
        return np.sqrt(np.maximum(np.diag(undo @ covariance @ undo.T), 0))

    @cached_property
    def response(self) -> Response:
        """What would be seen of an atom of each species: what simulated atoms go through."""
        if self.probabilities is None:
            return Response.of_errors(self.label_error, len(self.environments.species))
        return Response.of_soft(self.probabilities)

    @property
    def uncertain(self) -> int:
        """Seen sites with a soft label that leaves more than one species."""
        return 0 if self.probabilities is None else int((settled(self.probabilities).max(axis=1) < 1).sum())

    def with_environments(self, environments: Environments) -> Observation:
        """The same image counted by other environments.

        Raises
        ------
        InputError
            If only counts are known: they cannot be counted again.
        """
        if environments.key == self.environments.key:
            return self
        if self.configuration is None:
            raise InputError(f"{self.name}: only counts are known, by {self.environments!r}; they cannot be counted by {environments!r}")
        again = Observation.from_configuration(self.configuration, environments=environments, probabilities=self.probabilities)
        return replace(self, environments=environments, counts=again.counts)


def _soft_counts(
    environments: Environments, rows: tuple[NDArray[np.int64], ...], p: NDArray[np.float64]
) -> NDArray[np.int64] | NDArray[np.float64]:
    """Counts of sites with probabilities p (n_seen, k): whole numbers where all are certain."""
    if (p.max(axis=1) == 1).all():
        return tally(environments, rows, p.argmax(axis=1).astype(np.uint8)[None])[0]
    return tally(environments, rows, np.arange(len(p))[None], p)[0]


def _corrected(
    p: NDArray[np.float64], given: Sequence[str], read: Sequence[str | None], species: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities (n, k) in which labels given by hand are certain, and which those are."""
    labels, rows = np.array([list(species).index(s) for s in given], dtype=np.int64), np.arange(len(p))
    known = np.isfinite(p).all(axis=1)
    filled = np.where(known[:, None], p, 0.0)
    best = filled[rows, labels] >= filled.max(axis=1) - 1e-9
    same = np.array([best[i] if r is None else r == given[i] for i, r in enumerate(read)], dtype=bool)
    by_hand = ~(known & same)
    return np.where(by_hand[:, None], np.eye(len(species))[labels], filled), by_hand


def _numbers(path: Path, rows: list[dict[str, str]], columns: Sequence[str], empty: bool = False) -> NDArray[np.float64]:
    """Columns of a table as numbers, (rows, columns); what is empty is nan if that may be."""
    try:
        found = [[np.nan if empty and not r[c].strip() else float(r[c]) for c in columns] for r in rows]
        return np.array(found, dtype=float).reshape(-1, len(columns))
    except ValueError as error:
        names = ", ".join(map(repr, columns))
        raise InputError(f"{path}: columns {names} hold something that is no number ({error})") from None
