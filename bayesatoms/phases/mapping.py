"""From what every draw does at every point to a map: means and quantiles, probabilities, boundaries, models compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..lattice import Supercell
from .coexistence import gaps
from .observables import PHASES, ordered_threshold, phase
from .sheet import ALPHA, COMPOSITION, DOUBT, ENERGY, HEAT, LONG, ORDER, POTENTIAL, SUSCEPTIBILITY

QUANTILES = (0.05, 0.5, 0.95)
_TANGENT = 5  # compositions from which on a free energy is integrated
_NAMES = {
    ORDER: ("order_parameter", "1", "largest share of the spectral weight in one pair of wave vectors"),
    ALPHA: ("warren_cowley", "1", "Warren-Cowley parameter, nearest neighbours (0 random, negative: unlike preferred)"),
    ENERGY: ("energy", "kT at formation, a site", "energy (less chemical work at given chemical potential)"),
    HEAT: ("heat_capacity", "k, a site", "heat capacity at fixed composition or chemical potential"),
    SUSCEPTIBILITY: ("susceptibility", "1 / kT at formation, a site", "d x / d mu of the composition, N Var(x) / T"),
    COMPOSITION: ("mean_composition", "1", "fraction of the species that varies"),
    POTENTIAL: ("chemical_potential", "kT at formation", "chemical potential of the species that varies, against the other"),
}


@dataclass(frozen=True, eq=False)
class Draws:
    """What every draw does: the raw material of a map.

    values (9, draws, temperature, across); unsettled, frozen (draws, temperature, across); owner (draws,) number of the model;
    `across` is the second axis: its name ("composition" or "chemical_potential"), values and text.
    """

    values: NDArray[np.float64]
    unsettled: NDArray[np.bool_]
    frozen: NDArray[np.bool_]
    owner: NDArray[np.int64]
    models: tuple[str, ...]
    temperature: NDArray[np.float64]
    across: tuple[str, NDArray[np.float64], str]
    box: Supercell

    @property
    def canonical(self) -> bool:
        return self.across[0] == "composition"

    @cached_property
    def threshold(self) -> NDArray[np.float64]:
        """The order parameter above which a point counts as ordered or separated, by its composition; as one value."""
        n = self.box.n_sites
        known = np.array([ordered_threshold(self.box, k / n) if 0 < k < n else 1.0 for k in range(n + 1)])
        return known[np.clip(np.round(self.values[COMPOSITION] * n), 0, n).astype(int)]

    @cached_property
    def phases(self) -> NDArray[np.int64]:
        """Number of the phase of each draw (draws, temperature, across): see :data:`~bayesatoms.phases.observables.PHASES`."""
        return phase(self.values[ORDER], self.values[LONG], self.threshold)

    @property
    def told(self) -> NDArray[np.bool_]:
        """Where (draws, temperature) potentials are those of equilibrium: not where atoms of some composition stand still."""
        return ~self.frozen.any(axis=2)

    @cached_property
    def coexistence(self) -> NDArray[np.float64] | None:
        """Compositions (draws, temperature, 2) between which the alloy splits, the widest gap; nan where it does not."""
        if not self.canonical or len(self.across[1]) < _TANGENT:
            return None
        x = self.values[COMPOSITION, 0, 0]  # of whole atoms
        found = np.full((*self.values.shape[1:3], 2), np.nan)
        for draw in range(found.shape[0]):
            for row, t in enumerate(self.temperature):
                if not self.told[draw, row]:
                    continue
                error = float(np.sqrt((self.values[DOUBT, draw, row] ** 2).mean())) / t
                found_here = gaps(x, self.values[POTENTIAL, draw, row] / t, self.box.n_sites, error)
                gap = max(found_here, key=lambda g: g.high - g.low, default=None)
                if gap is not None:
                    found[draw, row] = gap.low, gap.high
        return found

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """Highest temperature (draws, across) at which a draw is not disordered: 0 if none is met, inf if it is above the map.

        Between two rows the order parameter is interpolated to its threshold in the logarithm of the temperature.
        """
        out = np.zeros((self.phases.shape[0], self.phases.shape[2]))
        level, log_t = self.values[ORDER] - self.threshold, np.log(self.temperature)
        for draw, column in np.ndindex(out.shape):
            rows = np.flatnonzero(self.phases[draw, :, column] > 0)
            if not len(rows):
                continue
            top = rows[-1]
            if top == len(log_t) - 1:
                out[draw, column] = np.inf
                continue
            low, high = level[draw, top, column], level[draw, top + 1, column]
            out[draw, column] = np.exp(log_t[top] + (log_t[top + 1] - log_t[top]) * low / (low - high))
        return out


def map_of(draws: Draws) -> xr.Dataset:
    """Means and quantiles of every observable, probability of each phase, and what is not to be relied on."""
    axes = ("temperature", draws.across[0])
    columns: dict[str, tuple] = {}
    for number, (name, units, text) in _NAMES.items():
        if number in ((COMPOSITION, SUSCEPTIBILITY) if draws.canonical else (POTENTIAL,)):
            continue
        spread = np.quantile(draws.values[number], QUANTILES, axis=0)
        columns[name] = (("quantile", *axes), spread, {"units": units, "long_name": text})
        columns[f"{name}_mean"] = (axes, draws.values[number].mean(axis=0), {"units": units, "long_name": f"{text}; mean"})
    shares = {f"p_{name}": (draws.phases == number).mean(axis=0) for number, name in enumerate(PHASES)}
    texts = dict(
        zip(shares, ("probability of disorder", "probability of long-range order", "probability of phase separation"), strict=True)
    )
    for name, values in shares.items():
        columns[name] = (axes, values, {"units": "1", "long_name": texts[name]})
    plain = {
        "hysteresis": (draws.unsettled.mean(axis=0), "share of draws whose chains are not in equilibrium"),
        "supported": (
            1 - draws.frozen.mean(axis=0),
            "share of draws whose atoms still moved; the others hold their last values",
        ),
        "disagreement": (disagreement(draws), "information that knowing the model gives on the phase, in bits (0: models agree)"),
        "threshold": (draws.threshold.mean(axis=0), "order parameter above which a point counts as ordered or separated"),
    }
    if draws.coexistence is not None:
        low, high = (side[:, :, None] for side in np.moveaxis(draws.coexistence, -1, 0))
        inside = (low < draws.across[1]) & (draws.across[1] < high)  # nan compares as False
        known = draws.told.sum(axis=0)[:, None]
        share = np.where(known > 0, inside.sum(axis=0) / np.maximum(known, 1), np.nan)
        text = "probability of lying between the two compositions of the widest gap, by the common tangent, among draws that still move"
        plain["p_coexistence"] = (share, text)
    columns.update({name: (axes, values, {"units": "1", "long_name": text}) for name, (values, text) in plain.items()})
    return xr.Dataset(columns, _coordinates(draws, quantile=True))


def models_of(draws: Draws, weights: Sequence[float]) -> xr.Dataset:
    """Probability of each phase under every model that has draws, and their weights."""
    axes = ("model", "temperature", draws.across[0])
    numbers = [i for i in range(len(draws.models)) if (draws.owner == i).any()]
    mine = [draws.phases[draws.owner == i] for i in numbers]
    columns: dict[str, tuple] = {
        f"p_{name}": (
            axes,
            np.stack([(m == k).mean(axis=0) for m in mine]),
            {"units": "1", "long_name": f"{name}: probability by model"},
        )
        for k, name in enumerate(PHASES)
    }
    columns["weight"] = (("model",), np.array([weights[i] for i in numbers]), {"units": "1", "long_name": "posterior weight"})
    names = {"model": ("model", [draws.models[i] for i in numbers], {"long_name": "model"})}
    return xr.Dataset(columns, {**_coordinates(draws), **names})


def boundaries_of(draws: Draws) -> xr.Dataset:
    """Boundaries as draws: temperatures at which order or separation sets in, and coexisting compositions."""
    name, transitions = draws.across[0], draws.transitions
    spread = np.quantile(transitions, QUANTILES, axis=0, method="closest_observation")
    columns: dict[str, tuple] = {
        "transition": (("draw", name), transitions, "highest temperature that is not disordered (0: none in range, inf: above it)"),
        "transition_band": (("quantile", name), spread, "the same, quantiles over the draws"),
        "highest": (("draw",), transitions.max(axis=1), "the highest of them: the critical or ordering temperature"),
        "p_transition": ((name,), (transitions > 0).mean(axis=0), "share of draws with a transition in range or above it"),
    }
    if draws.coexistence is not None:
        columns["coexistence"] = (("draw", "temperature", "side"), draws.coexistence, "coexisting compositions, by the common tangent")
    model = {"model": (("draw",), np.array(draws.models)[draws.owner], {"long_name": "model of the draw"})}
    described = {key: (dims, values, {"units": "1", "long_name": text}) for key, (dims, values, text) in columns.items()}
    coordinates = {**_coordinates(draws, quantile=True), **model}
    if draws.coexistence is None:
        del coordinates["temperature"]
    return xr.Dataset(described, coordinates)


def disagreement(draws: Draws) -> NDArray[np.float64]:
    """Mutual information (temperature, across) of model and phase in bits: entropy of the phase less its mean within models.

    It is the Jensen-Shannon divergence of the models' phase probabilities, weighted by their draws (Lin, IEEE Trans.
    Inf. Theory 37, 145, 1991): 0 where all models say the same, 1 where two of equal weight are sure of different phases.
    """

    def entropy(phases: NDArray[np.int64]) -> NDArray[np.float64]:
        shares = np.stack([(phases == k).mean(axis=0) for k in range(len(PHASES))])
        return -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=0)

    inside = np.zeros(draws.phases.shape[1:])
    for number in np.unique(draws.owner):
        mine = draws.owner == number
        inside += mine.mean() * entropy(draws.phases[mine])
    return np.maximum(entropy(draws.phases) - inside, 0.0)


def notes_of(draws: Draws) -> list[str]:
    """What a reader of the boundaries must know, in words."""
    t, found = draws.temperature, []
    transitions = draws.transitions
    if not transitions.any():
        return [f"no transition in range: disordered for all draws from {t[0]:g} to {t[-1]:g} of the formation temperature"]
    if len(t) < 2:
        return [f"one temperature, {t[0]:g}: boundaries need two or more"]
    if np.isinf(transitions).any():
        share = np.isinf(transitions).any(axis=1).mean()
        found.append(f"{share:.0%} of the draws have a transition above {t[-1]:g}: extend the temperatures upwards")
    real = transitions[np.isfinite(transitions) & (transitions > 0)]
    if len(real):
        low, high = np.quantile(real, [0.05, 0.95])
        rows = np.clip(np.searchsorted(t, real) - 1, 0, len(t) - 2)
        step = float(np.median(np.log(t[rows + 1] / t[rows])))
        if step > max(np.log(high / low), 0.05):
            found.append(
                f"the grid is too coarse for the boundary: neighbouring temperatures differ by {np.expm1(step):.0%}, the boundary by "
                f"{high / low - 1:.0%} among the draws; add temperatures between {t[rows.min()]:.3g} and {t[rows.max() + 1]:.3g}"
            )
    return found


def _coordinates(draws: Draws, quantile: bool = False) -> dict[str, tuple]:
    name, values, text = draws.across
    units = "1" if draws.canonical else "kT at formation"
    found: dict[str, tuple] = {
        "temperature": ("temperature", draws.temperature, {"units": "1", "long_name": "temperature relative to the formation temperature"}),
        name: (name, values, {"units": units, "long_name": text}),
    }
    if quantile:
        found["quantile"] = ("quantile", np.array(QUANTILES), {"units": "1", "long_name": "quantile over the posterior draws"})
    return found
