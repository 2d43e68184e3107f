"""A Gaussian process through one scalar known with errors: over couplings, or over composition and temperature.

Kernel, solver and marginal likelihood are tinygp's. Observations are linear functionals of the function,
values and slopes alike, so a chain that gives both <t> and d<t>/dw = -Cov(t, F) is used in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tinygp
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from ..errors import InputError

_AMPLITUDES, _LENGTHS = (0.05, 30.0), (0.1, 30.0)  # in units of the data's spread, and of half the inputs' range
_WIDTH = 1.5  # of the prior of their logarithms: weak, so that three points do not decide anything
_LEAST = 1e-5  # noise in units of the data's spread, below which the matrix is singular to working precision


class Functionals(tinygp.kernels.Kernel):
    """Covariance of functionals c_0 f(x) + sum_j c_j df/dx_j of a process with squared-exponential kernel.

    Inputs are pairs (x, c) of shapes (d,) and (1 + d,); c = (1, 0, ..., 0) is the value itself
    (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 9.1).
    """

    amplitude: Any
    lengths: Any

    def evaluate(self, X1: Any, X2: Any) -> Any:
        """Covariance of one pair."""
        (x, a), (y, b) = X1, X2
        apart, slope_a, slope_b = (x - y) / self.lengths, a[1:] / self.lengths, b[1:] / self.lengths
        k = self.amplitude**2 * jnp.exp(-0.5 * apart @ apart)
        return k * ((a[0] - slope_a @ apart) * (b[0] + slope_b @ apart) + slope_a @ slope_b)


class Rough(tinygp.kernels.Kernel):
    """Matern-5/2 covariance of values: for functions with kinks, as order parameters at a transition."""

    amplitude: Any
    lengths: Any

    def evaluate(self, X1: Any, X2: Any) -> Any:
        """Covariance of one pair."""
        matern = tinygp.kernels.Matern52(distance=tinygp.kernels.distance.L2Distance())
        return self.amplitude**2 * matern.evaluate(X1[0] / self.lengths, X2[0] / self.lengths)


@partial(
    jax.tree_util.register_dataclass, data_fields=("kernel", "x", "roles", "point", "y", "root", "alpha", "shift", "scale"), meta_fields=()
)
@dataclass(frozen=True, eq=False)
class ScalarProcess:
    """A fitted process; predictions are differentiable by jax, and several of equal size stack into one (it is a pytree).

    Attributes
    ----------
    kernel : tinygp Kernel
        With its amplitude and lengths, in scaled units.
    x, roles : ndarray, shapes (n, d) and (n, 1 + d)
        Scaled inputs of all observations, and which functional each is.
    point : ndarray of int, shape (n,)
        The design point that each observation belongs to.
    y, root, alpha : ndarray, shapes (n,), (n, n), (n,)
        Scaled observations; the inverse Cholesky factor of their covariance, applied once and twice to them.
    shift, scale : ndarray, shapes (2, d) and (2,)
        x = (input - shift[0]) / shift[1]; y = (value - scale[0]) / scale[1].
    """

    kernel: Any
    x: Any
    roles: Any
    point: Any
    y: Any
    root: Any
    alpha: Any
    shift: Any
    scale: Any

    @classmethod
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def fit(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        noise: ArrayLike,
        *,
        slopes: ArrayLike | None = None,
        slope_noise: ArrayLike | None = None,
        smooth: bool = True,
    ) -> ScalarProcess:
        """Fit amplitude and one length for each input by marginal likelihood.

        Parameters
        ----------
        x : array_like, shape (n, d)
            Inputs: couplings, or composition and temperature.
        y, noise : array_like, shape (n,)
            Values and their standard errors.
        slopes, slope_noise : array_like, shape (n, d), optional
            Derivatives by the inputs and their standard errors.
        smooth : bool
            Squared-exponential kernel; false, Matern-5/2, which takes no slopes.

        Raises
        ------
        InputError
            If shapes disagree, something is not finite, an error is not positive, or slopes meet a rough kernel.

        Examples
        --------
        >>> x = np.linspace(0, 3, 8)[:, None]
        >>> p = ScalarProcess.fit(x, np.sin(x[:, 0]), np.full(8, 1e-3), slopes=np.cos(x), slope_noise=np.full((8, 1), 1e-2))
        >>> mean, variance = p.predict([[1.0]])
        >>> bool(abs(mean[0] - np.sin(1.0)) < 3e-3), bool(variance[0] < 1e-5)
        (True, True)
        """
        import numpyro

        numpyro.enable_x64()  # the matrices are nearly singular where the function is smooth
        x, y, noise = (np.asarray(a, dtype=float) for a in (x, y, noise))
        derived = [] if slopes is None else [np.asarray(slopes, dtype=float), np.asarray(slope_noise, dtype=float)]
        _check(x, y, noise, derived, smooth)
        n, d = x.shape
        low, high = x.min(axis=0), x.max(axis=0)
        shift = np.array([(low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)])
        spread = float(np.sqrt(max(np.var(y), np.mean(noise**2))))
        scale = np.array([np.average(y, weights=noise**-2), spread])
        inputs, roles, point = (x - shift[0]) / shift[1], np.eye(1 + d)[np.zeros(n, dtype=int)], np.arange(n)
        values, errors = (y - scale[0]) / spread, noise / spread
        if derived:
            inputs, point = np.tile(inputs, (1 + d, 1)), np.tile(point, 1 + d)
            roles = np.repeat(np.eye(1 + d), n, axis=0)
            values = np.concatenate([values, *(derived[0] * shift[1] / spread).T])
            errors = np.concatenate([errors, *(derived[1] * shift[1] / spread).T])
        observed = (jnp.asarray(inputs), jnp.asarray(roles)), jnp.asarray(values), jnp.asarray(np.maximum(errors, _LEAST) ** 2)
        theta = _maximise(d, observed, smooth)
        kernel, root = _solve(theta, *observed[::2], smooth)
        return cls(kernel, *observed[0], point, observed[1], root, root.T @ (root @ values), shift, scale)

    @jax.jit
    def predict(self, x: Any) -> tuple[Any, Any]:
        """Mean and variance of the function at inputs (m, d); both of shape (m,)."""
        scaled = (jnp.asarray(x) - self.shift[0]) / self.shift[1]
        value = jnp.zeros((scaled.shape[0], scaled.shape[1] + 1)).at[:, 0].set(1.0)
        covariance = self.kernel((self.x, self.roles), (scaled, value))
        explained = jnp.sum((self.root @ covariance) ** 2, axis=0)
        variance = jnp.maximum(self.kernel.amplitude**2 - explained, 1e-12)
        return self.scale[0] + self.scale[1] * (self.alpha @ covariance), self.scale[1] ** 2 * variance

    def held_out(self) -> NDArray[np.float64]:
        """Standardised residual of each point's value, predicted with the point (its slopes too) left out; shape (n points,).

        In closed form from the inverse of the covariance (Rasmussen and Williams 2006, eqs 5.10-5.12), block by block:
        normal with variance one where the errors are what they are said to be.
        """
        root, alpha, point = np.asarray(self.root), np.asarray(self.alpha), np.asarray(self.point)
        inverse, found = root.T @ root, []
        for k in range(int(point.max()) + 1):
            own = np.flatnonzero(point == k)  # its value comes first
            covariance = np.linalg.inv(inverse[np.ix_(own, own)])
            found.append(covariance[0] @ alpha[own] / np.sqrt(covariance[0, 0]))
        return np.array(found)


def _check(x: NDArray, y: NDArray, noise: NDArray, derived: list[NDArray], smooth: bool) -> None:
    if x.ndim != 2 or y.shape != (len(x),) or noise.shape != y.shape or any(a.shape != x.shape for a in derived):
        shapes = [a.shape for a in (x, y, noise, *derived)]
        raise InputError(f"inputs, values and errors of shapes {shapes} given; expected (n, d), (n,), (n,) and slopes with errors (n, d)")
    if len(x) < 3:
        raise InputError(f"{len(x)} points given; a process needs at least 3")
    if not all(np.isfinite(a).all() for a in (x, y, noise, *derived)) or not all((a > 0).all() for a in (noise, *derived[1:])):
        raise InputError("values, slopes or errors are not finite, or an error is not positive; leave such points out")
    if derived and not smooth:
        raise InputError("slopes given for a rough kernel; leave them out or use smooth=True")


def _process(theta: Any, observed: Any, variance: Any, smooth: bool) -> tinygp.GaussianProcess:
    kind = Functionals if smooth else Rough
    kernel = kind(jnp.exp(theta[0]), jnp.exp(theta[1:]))
    return tinygp.GaussianProcess(kernel, observed, diag=variance + 1e-11 * kernel.amplitude**2)


@partial(jax.jit, static_argnums=3)
def _solve(theta: Any, observed: Any, variance: Any, smooth: bool) -> tuple[Any, Any]:
    """The kernel, and the inverse Cholesky factor of the observations' covariance."""
    process = _process(theta, observed, variance, smooth)
    return process.kernel, process.solver.solve_triangular(jnp.eye(len(variance)))


@partial(jax.jit, static_argnums=4)
@partial(jax.value_and_grad, argnums=0)
def _loss(theta: Any, observed: Any, values: Any, variance: Any, smooth: bool) -> Any:
    """Minus the log marginal likelihood and the weak prior."""
    return 0.5 * jnp.sum((theta / _WIDTH) ** 2) - _process(theta, observed, variance, smooth).log_probability(values)


def _maximise(d: int, observed: tuple[Any, Any, Any], smooth: bool) -> Any:
    """Logarithms of amplitude and lengths, the better of two starts."""
    bounds = [tuple(np.log(_AMPLITUDES)), *[tuple(np.log(_LENGTHS))] * d]

    def objective(theta: NDArray) -> tuple[float, NDArray]:
        value, slope = _loss(jnp.asarray(theta), *observed, smooth)
        # where rounding spoils the factorisation the search turns back
        return (float(value), np.asarray(slope)) if np.isfinite(value) and np.isfinite(slope).all() else (1e10, np.zeros(d + 1))

    starts = [np.full(d + 1, np.log(length)) * (np.arange(d + 1) > 0) for length in (0.7, 3.0)]
    found = [minimize(objective, s, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 100}) for s in starts]
    return jnp.asarray(min(found, key=lambda f: f.fun).x)
