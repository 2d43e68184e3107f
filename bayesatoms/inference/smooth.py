"""The smooth emulator: a polynomial through the pool over the region where one posterior lives.

Fast and differentiable everywhere, so that NUTS meets no cliff; its error against the pool is measured
at the draws afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .emulator import SUPPORT_BAR, Emulator, common, stacked
from .moments import Moments, normal_log_density
from .parameters import Parameters
from .quasi import NEAR_NODES, Natural, along, bounded, natural, path
from .regression import leverage, monomials, regress

_NUMBERS = ("centre", "inverse", "mean", "entries", "histogram", "log_z", "temper", "level")
_WIDTHS = 3.0  # logarithm of the largest change of a width of the statistic within a region
_DENSE = 3  # coordinates in which a pool can be reweighted everywhere; beyond, chains are regressed upon


@dataclass(frozen=True, eq=False)
class Patch:
    """Polynomials in one image's coordinates about `centre` (c,), whitened by `inverse` (c, c).

    mean, entries (of the covariance's Cholesky factor, logarithms on its diagonal) and histogram hold one column
    of coefficients for each number they give; `level` is the log likelihood at the centre. log_z (powers,) is there
    for a crystal that is seen whole, whose features, about the pool's, are `features`. In many coordinates the fit is
    a regression on whole chains: `spread` is then the covariance of the mean's coefficients, `misfit` its held-out
    error, `records` those of a chain.
    """

    centre: NDArray[np.float64]
    inverse: NDArray[np.float64]
    powers: NDArray[np.int64]
    mean: NDArray[np.float64]
    entries: NDArray[np.float64]
    histogram: NDArray[np.float64]
    log_z: NDArray[np.float64] | None
    features: NDArray[np.float64] | None
    temper: float
    level: float
    observed: NDArray[np.float64]
    n_composition: int
    spread: NDArray[np.float64] | None = None
    misfit: float = 1.0
    records: float = 1.0


@dataclass(frozen=True, eq=False)
class SmoothEmulator:
    """Polynomials in one model's parameters through the pool's moments, over one posterior's region.

    In whitened coordinates the mean, the Cholesky factor of the covariance and the histogram of each image
    are polynomials, fitted to supported points inside `radius`. Beyond the radius they keep their value
    there, and `leash` pulls back, so a sampler that strays meets no cliff and no exploding polynomial.
    """

    parameters: Parameters
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    inverse: NDArray[np.float64]
    radius: float
    patches: Mapping[str, Patch]

    @classmethod
    def fit(
        cls,
        emulator: Emulator,
        parameters: Parameters | Hamiltonian,
        centre: NDArray[np.float64],
        cov: NDArray[np.float64],
        rng: np.random.Generator,
        *,
        radius: float = 4.5,
    ) -> SmoothEmulator:
        """Fit over the ellipsoid of `radius` standard deviations around `centre`, in each image's own coordinates.

        Raises
        ------
        CheckError
            If fewer points than twice the coefficients are supported: chains are needed there.
        """
        observations = [image.observation for image in emulator.images.values()]
        radius = max(radius, 2.5 + np.sqrt(len(centre))) if len(centre) > _DENSE else radius
        if isinstance(parameters, Hamiltonian):
            parameters = Parameters.of(parameters, observations)
        k = len(parameters.model.names)
        scale, embed, patches, z = np.linalg.cholesky(cov), emulator.embed(parameters.model), {}, None
        for o in observations:
            slope = parameters.slope(o.name, centre, np.sqrt(np.diag(cov)))
            own = parameters.of_image(o.name, centre)
            root = scale if parameters.shared else np.linalg.cholesky(slope @ cov @ slope.T)
            powers = _powers(len(own))
            if z is None or not parameters.shared:
                z = _ball(rng, max(60, 8 * len(powers)), len(own), radius)
            points = own + z @ root.T
            union = np.column_stack([points[:, :k] @ embed, points[:, k:]])
            level = log_level(emulator, o, np.r_[own[:k] @ embed, own[k:]])
            try:
                if len(own) > _DENSE:
                    patches[o.name] = _regressed(emulator, o, own, root, radius, powers, embed, level, rng)
                else:
                    patches[o.name] = _patch(emulator, o, union, own, root, z / radius, powers, embed, level)
            except CheckError as thin:
                raise CheckError(f"{parameters.model.name}, {o.name}: {thin}") from None
        return cls(parameters, centre, scale, np.linalg.inv(scale), radius, patches)

    @property
    def model(self) -> Hamiltonian:
        return self.parameters.model

    def numbers(self) -> dict[str, Any]:
        """All that depends on the data, as a tree of arrays: what is compiled once serves every emulator of the same shape."""
        own = {"centre": self.centre, "inverse": self.inverse}
        patches = {n: {f: v for f in _NUMBERS if (v := getattr(p, f)) is not None} for n, p in self.patches.items()}
        return {"own": own, "patches": patches}

    def with_numbers(self, numbers: Mapping[str, Any]) -> SmoothEmulator:
        """The same emulator with other numbers, jax arrays mostly."""
        patches = {n: replace(self.patches[n], **values) for n, values in numbers["patches"].items()}
        return replace(self, **numbers["own"], patches=patches)

    def whitened(self, values: Any, xp: ModuleType = np) -> Any:
        """z of parameters (m, p)."""
        return (values - self.centre) @ xp.asarray(self.inverse).T

    def _basis(self, names: Sequence[str], values: Any, xp: ModuleType) -> Any:
        """Monomials (images, m, powers) of several images at parameters (m, p)."""
        found = []
        for name in names[:1] if self.parameters.shared else names:
            patch = self.patches[name]
            z = (self.parameters.of_image(name, values, xp) - patch.centre) @ xp.asarray(patch.inverse).T / self.radius
            length = xp.sqrt(xp.sum(z**2, axis=1, keepdims=True) + 1e-30)
            found.append(_monomials(z * xp.minimum(1.0, 1.0 / length), patch.powers, xp))
        return found[0][None] if self.parameters.shared else xp.stack(found)

    def factors(self, names: Sequence[str], values: Any, xp: ModuleType = np) -> Moments:
        """Moments of several images of equal statistic size at many parameters (m, p); leading axes (images, m)."""
        patches = [self.patches[n] for n in names]
        mean, entries, histogram = (xp.stack([getattr(p, part) for p in patches]) for part in ("mean", "entries", "histogram"))
        basis = self._basis(names, values, xp)
        d = mean.shape[-1]
        i, j = np.tril_indices(d)
        flat = basis @ entries
        # a polynomial through few points may promise a covariance of nothing: no width differs that much from the centre's
        middle = entries[:, np.flatnonzero(patches[0].powers.sum(axis=1) == 0)[0]][:, None]
        flat = xp.where(i == j, xp.exp(xp.clip(xp.where(i == j, flat - middle, 0.0), -_WIDTHS, _WIDTHS) + middle), flat)
        place = np.zeros((len(i), d * d))
        place[np.arange(len(i)), i * d + j] = 1.0
        p = xp.maximum(basis @ histogram, 1e-12)
        return Moments(basis @ mean, (flat @ place).reshape(*flat.shape[:-1], d, d), p / p.sum(axis=-1, keepdims=True))

    def _stack(self, values: Mapping[str, Any]) -> Any:
        import jax.numpy as jnp

        return jnp.stack([jnp.asarray(values[n], dtype=float) for n in self.parameters.names])[None]

    def moments(self, observation: Observation | Sequence[Observation], values: Mapping[str, Any]) -> Moments:
        """Moments at parameters by name, of one image or stacked for several; differentiable by jax."""
        import jax.numpy as jnp

        one = isinstance(observation, Observation)
        found = self.factors([o.name for o in ([observation] if one else observation)], self._stack(values), jnp)
        return Moments(*(part[0, 0] if one else part[:, 0] for part in found))

    @property
    def origin(self) -> dict[str, Any]:
        """The centre, by name."""
        return dict(zip(self.parameters.names, self.centre, strict=True))

    near = True  # the origin: it is that of a posterior

    def log_origin(self, observation: Observation | Sequence[Observation]) -> Any:
        """Log likelihood at the centre, of one image or stacked for several."""
        if isinstance(observation, Observation):
            return self.patches[observation.name].level
        return [self.patches[o.name].level for o in observation]

    def natural(self, observation: Observation, values: NDArray[np.float64]) -> Natural:
        """The calibrated log likelihood of an image at parameters (m, p) over that at the centre: slope (m, d), constant (m,)."""
        return natural(self._lines(observation, values), self.n_composition(observation))

    def log_calibrated(self, observation: Observation, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The calibrated log likelihood (m,) of an image at parameters (m, p)."""
        lines, n_given, value = self._lines(observation, values), self.n_composition(observation), self.statistic(observation)
        begin, end = (Moments(lines.mean[i], lines.lower[i], None) for i in (0, -1))
        return self.log_origin(observation) + bounded(natural(lines, n_given)(value), value, end, begin, n_given)

    def _lines(self, observation: Observation, values: NDArray[np.float64]) -> Moments:
        """Moments at the nodes from the centre to parameters (m, p): mean (nodes, m, d)."""
        nodes = self.centre + NEAR_NODES[:, None, None] * (values - self.centre)
        found = self.factors([observation.name], nodes.reshape(-1, values.shape[1]))
        return Moments(*(part[0].reshape(*nodes.shape[:2], *part.shape[2:]) for part in (found.mean, found.lower)), None)

    def energies(self, name: str, values: Any, xp: ModuleType = np) -> tuple[Any, Any]:
        """Couplings (m, k) and ln Z (m,) of one whole crystal at parameters (m, p), for features about the pool's.

        Both are drawn towards the region's centre by as much as widens the likelihood by the emulator's own error.
        """
        patch, k = self.patches[name], len(self.model.names)
        if patch.log_z is None:
            raise CheckError(f"{name} is no whole crystal without label errors: its exact likelihood is not known")
        centre = patch.log_z[np.flatnonzero(patch.powers.sum(axis=1) == 0)[0]]
        couplings = self.parameters.of_image(name, values, xp)[..., :k] - patch.centre[:k]
        log_z = self._basis([name], values, xp)[0] @ patch.log_z - centre
        return patch.centre[:k] + patch.temper * couplings, centre + patch.temper * log_z

    def energy(self, observation: Observation | Sequence[Observation], values: Mapping[str, Any]) -> tuple[Any, Any]:
        """Couplings (..., k) and ln Z (...) of whole crystals at parameters by name; differentiable by jax."""
        import jax.numpy as jnp

        theta = self._stack(values)
        if isinstance(observation, Observation):
            return tuple(part[0] for part in self.energies(observation.name, theta, jnp))
        found = [self.energies(o.name, theta, jnp) for o in observation]
        return tuple(jnp.stack([part[0] for part in parts]) for parts in zip(*found, strict=True))

    def features(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """Observed features of the model's terms (k,), about the pool's; stacked for several images."""
        return stacked(lambda o: self.patches[o.name].features, observation)

    def support(self, values: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Records that the predicted mean at parameters (m, p) is worth, in units of a chain, the worst image's.

        None where the polynomials run through the reweighted pool, whose own support is what counts.
        """
        found = []
        for name, patch in self.patches.items():
            if patch.spread is not None:
                z = (self.parameters.of_image(name, values) - patch.centre) @ patch.inverse.T / self.radius
                # beyond the radius nothing was fitted
                inside = (z**2).sum(axis=1) <= 1
                found.append(np.where(inside, 1 / leverage(monomials(z, patch.powers), patch.spread) / patch.records, 0.0))
        return np.min(found, axis=0) if found else None

    @property
    def misfit(self) -> float:
        """Held-out error of the worst image: mean square of standardised residuals, 1 where polynomials will do."""
        return max(patch.misfit for patch in self.patches.values())

    def leash(self, values: Any, xp: ModuleType = np) -> Any:
        """Log factor (m,) that continues the likelihood as a Gaussian beyond the radius, 0 inside."""
        z2 = xp.sum(self.whitened(values, xp) ** 2, axis=1)
        return -0.5 * xp.maximum(0.0, z2 - self.radius**2)

    def statistic(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """The observed value, stacked for several images."""
        return stacked(lambda o: self.patches[o.name].observed, observation)

    def n_composition(self, observation: Observation | Sequence[Observation]) -> int:
        """Leading rows of the statistic that are composition, on which is conditioned."""
        return common(lambda o: self.patches[o.name].n_composition, observation)


def log_level(emulator: Emulator, o: Observation, end: NDArray[np.float64]) -> float:
    """Calibrated log likelihood of one image at the pool's coordinates (c,): that of the random alloy, and how it changes on the way."""
    batch = emulator.at(o.name).batch
    origin = emulator.at(o.name).random
    begin, value, given = batch(origin[None])[0], emulator.statistic(o), emulator.n_composition(o)
    first = normal_log_density(value, begin.mean[0], begin.lower[0], given)
    return float(first) + along(batch, path(batch, origin, end), value, given)


def _powers(c: int) -> NDArray[np.int64]:
    """Exponents of the monomials in c coordinates, of total degree 5, 4, 3, then 2."""
    degree = {1: 5, 2: 4, 3: 3}.get(c, 2)
    if c > 3:  # of the many products of high degree only those with few factors exist
        rows = [np.bincount(p, minlength=c) for n in range(degree + 1) for p in itertools.combinations_with_replacement(range(c), n)]
        return np.array(rows, dtype=np.int64)
    return np.array([p for p in itertools.product(range(degree + 1), repeat=c) if sum(p) <= degree])


def _ball(rng: np.random.Generator, n: int, c: int, radius: float) -> NDArray[np.float64]:
    """Points (n, c) of the ball; uniform in the radius, not the volume: the middle, where the posterior is, gets its share."""
    direction = rng.normal(size=(n, c))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * radius * rng.uniform(size=(n, 1)) ** (1 / min(c, 2))


def _patch(
    emulator: Emulator, o: Observation, union: NDArray, own: NDArray, root: NDArray, unit: NDArray, powers: NDArray,
    embed: NDArray, level: float,
) -> Patch:  # fmt: skip
    """Polynomials through one image's moments at the pool's coordinates `union` (m, ...), which are `unit` (m, c) in the unit ball."""
    image, whole = emulator.images[o.name], emulator.images[o.name].observed is not None
    moments, support = emulator.at(o.name).batch(union)
    # fewer records than numbers to estimate give no covariance, whatever their share of a chain
    good = (support >= SUPPORT_BAR) & (support * image.reweighting.records.mean() >= 2 * len(image.offset) + 2)
    if good.sum() < 2 * len(powers):
        raise CheckError(f"{good.sum()} of {len(unit)} points of the region have support; expected {2 * len(powers)}")
    weight = np.sqrt(np.minimum(support[good], 10))[:, None]
    basis = _monomials(unit[good], powers) * weight
    lower = moments.lower[good]
    i, j = np.tril_indices(lower.shape[1])
    entries = np.where(i == j, np.log(np.maximum(lower[:, i, j], 1e-300)), lower[:, i, j])
    targets = [moments.mean[good], entries, moments.histogram[good], *([image.log_z(union[good])[:, None]] if whole else [])]
    mean, entries, histogram, *log_z = [np.linalg.lstsq(basis, target * weight, rcond=None)[0] for target in targets]
    exact = (log_z[0][:, 0], embed @ image.observed, image.temper(own[: len(embed)] @ embed)) if whole else (None, None, 1.0)
    return Patch(
        own,
        np.linalg.inv(root),
        powers,
        mean,
        entries,
        histogram,
        *exact,
        log_level(emulator, o, np.r_[own[: len(embed)] @ embed, own[len(embed) :]]),
        emulator.statistic(o),
        emulator.n_composition(o),
    )


def _regressed(
    emulator: Emulator,
    o: Observation,
    own: NDArray,
    root: NDArray,
    radius: float,
    powers: NDArray,
    embed: NDArray,
    level: float,
    rng: np.random.Generator,
) -> Patch:
    """A quadratic regression on one image's chains."""
    image = emulator.images[o.name]
    fitted = regress(emulator, o.name, own, root, radius, powers, embed, rng)
    features = None if fitted.log_z is None else embed @ image.observed
    # the emulator's error at the centre, as a record's worth
    h = float(leverage(monomials(np.zeros((1, len(own))), powers), fitted.spread)[0])
    return Patch(
        own, np.linalg.inv(root), powers, fitted.mean, fitted.entries, fitted.histogram, fitted.log_z, features, 1 / (1 + image.shared * h),
        level, emulator.statistic(o), emulator.n_composition(o), fitted.spread, fitted.misfit, float(image.reweighting.records.mean()),
    )  # fmt: skip


def _monomials(z: Any, powers: NDArray[np.int64], xp: ModuleType = np) -> Any:
    """All products of powers, shape (m, n_powers)."""
    columns = [xp.ones_like(z)]
    for _ in range(int(powers.max(initial=0))):
        columns.append(columns[-1] * z)
    table = xp.stack(columns)  # (degree + 1, m, k)
    return xp.prod(xp.stack([table[powers[:, a], :, a] for a in range(powers.shape[1])]), axis=0).T
