"""The smooth emulator: a polynomial through the pool over the region where one posterior lives.

Fast and differentiable everywhere, so that NUTS meets no cliff; its error against the pool is measured
at the draws afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .emulator import SUPPORT_BAR, Emulator, Moments, common, stacked


@dataclass(frozen=True, eq=False)
class SmoothEmulator:
    """Polynomials in one model's couplings through the pool's moments, over one posterior's region.

    In whitened couplings z = inverse(scale) (w - centre) the mean, the Cholesky factor of the
    covariance (logarithms on its diagonal) and the histogram of each image are polynomials of total
    degree `degree`, fitted to supported points inside `radius`. Beyond the radius they keep their
    value there, and `leash` pulls back, so a sampler that strays meets no cliff and no exploding
    polynomial.
    """

    model: Hamiltonian
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    radius: float
    powers: NDArray[np.int64]
    coefficients: Mapping[str, tuple[NDArray, NDArray, NDArray]]
    n_compositions: Mapping[str, int]
    observed: Mapping[str, NDArray[np.float64]]

    @classmethod
    def fit(
        cls,
        emulator: Emulator,
        model: Hamiltonian,
        centre: NDArray[np.float64],
        cov: NDArray[np.float64],
        rng: np.random.Generator,
        *,
        radius: float = 4.5,
    ) -> SmoothEmulator:
        """Fit over the ellipsoid of `radius` standard deviations around `centre`.

        Raises
        ------
        CheckError
            If fewer points than twice the coefficients are supported: chains are needed there.
        """
        k = len(centre)
        degree = {1: 5, 2: 4}.get(k, 3 if k == 3 else 2)
        powers = np.array([p for p in itertools.product(range(degree + 1), repeat=k) if sum(p) <= degree])
        scale = np.linalg.cholesky(cov)
        n_points = max(60, 8 * len(powers))
        direction = rng.normal(size=(n_points, k))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        # uniform in the radius, not the volume: the middle, where the posterior is, gets its share
        z = direction * radius * rng.uniform(size=(n_points, 1)) ** (1 / min(k, 2))
        union = (centre + z @ scale.T) @ emulator.embed(model)
        coefficients = {}
        for name, image in emulator.images.items():
            moments, support = image.batch(union)
            # fewer records than numbers to estimate give no covariance, whatever their share of a chain
            good = (support >= SUPPORT_BAR) & (support * image.reweighting.records.mean() >= 2 * len(image.offset) + 2)
            if good.sum() < 2 * len(powers):
                raise CheckError(
                    f"{model.name}, {name}: {good.sum()} of {n_points} points of the region have support; expected {2 * len(powers)}"
                )
            weight = np.sqrt(np.minimum(support[good], 10))[:, None]
            basis = _monomials(z[good] / radius, powers) * weight
            lower = moments.lower[good]
            i, j = np.tril_indices(lower.shape[1])
            entries = np.where(i == j, np.log(np.maximum(lower[:, i, j], 1e-300)), lower[:, i, j])
            targets = (moments.mean[good], entries, moments.histogram[good])
            coefficients[name] = tuple(np.linalg.lstsq(basis, target * weight, rcond=None)[0] for target in targets)
        observed = {n: emulator.statistic(image.observation) for n, image in emulator.images.items()}
        compositions = {n: image.n_composition for n, image in emulator.images.items()}
        return cls(model, centre, scale, radius, powers, coefficients, compositions, observed)

    def whitened(self, couplings: Any, xp: ModuleType = np) -> Any:
        """z of couplings (m, k)."""
        return (couplings - self.centre) @ xp.asarray(np.linalg.inv(self.scale)).T

    def factors(self, names: Sequence[str], couplings: Any, xp: ModuleType = np) -> Moments:
        """Moments of several images of equal statistic size at many couplings (m, k); leading axes (images, m)."""
        mean, entries, histogram = (np.stack([self.coefficients[n][part] for n in names]) for part in range(3))
        z = self.whitened(couplings, xp) / self.radius
        length = xp.sqrt(xp.sum(z**2, axis=1, keepdims=True) + 1e-30)
        basis = _monomials(z * xp.minimum(1.0, 1.0 / length), self.powers, xp)
        d = mean.shape[-1]
        i, j = np.tril_indices(d)
        flat = basis @ entries
        flat = xp.where(i == j, xp.exp(xp.where(i == j, flat, 0.0)), flat)
        place = np.zeros((len(i), d * d))
        place[np.arange(len(i)), i * d + j] = 1.0
        p = xp.maximum(basis @ histogram, 1e-12)
        return Moments(basis @ mean, (flat @ place).reshape(*flat.shape[:-1], d, d), p / p.sum(axis=-1, keepdims=True))

    def moments(self, observation: Observation | Sequence[Observation], couplings: Mapping[str, Any]) -> Moments:
        """Moments at the model's couplings, of one image or stacked for several; differentiable by jax."""
        import jax.numpy as jnp

        w = jnp.stack([jnp.asarray(couplings[n], dtype=float) for n in self.model.names])[None]
        one = isinstance(observation, Observation)
        found = self.factors([o.name for o in ([observation] if one else observation)], w, jnp)
        return Moments(*(part[0, 0] if one else part[:, 0] for part in found))

    def leash(self, couplings: Any, xp: ModuleType = np) -> Any:
        """Log factor (m,) that continues the likelihood as a Gaussian beyond the radius, 0 inside."""
        z2 = xp.sum(self.whitened(couplings, xp) ** 2, axis=1)
        return -0.5 * xp.maximum(0.0, z2 - self.radius**2)

    def statistic(self, observation: Observation | Sequence[Observation]) -> NDArray[np.float64]:
        """The observed value, stacked for several images."""
        return stacked(lambda o: self.observed[o.name], observation)

    def n_composition(self, observation: Observation | Sequence[Observation]) -> int:
        """Leading rows of the statistic that are composition."""
        return common(lambda o: self.n_compositions[o.name], observation)


def _monomials(z: Any, powers: NDArray[np.int64], xp: ModuleType = np) -> Any:
    """All products of powers, shape (m, n_powers)."""
    columns = [xp.ones_like(z)]
    for _ in range(int(powers.max(initial=0))):
        columns.append(columns[-1] * z)
    table = xp.stack(columns)  # (degree + 1, m, k)
    return xp.prod(xp.stack([table[powers[:, a], :, a] for a in range(powers.shape[1])]), axis=0).T
