"""What is checked of every posterior: whether to believe it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .campaign import Campaign, Region
from .densities import SMOOTH_BAR, emulator_error, smooth_error
from .emulator import SLOW_BAR, SUPPORT_BAR, ImageEmulator, slow_weight
from .sampling import Posterior

_RHAT_BAR, _ESS_BAR = 1.01, 400  # Vehtari et al., Bayesian Anal. 16, 667 (2021)
ONE_HEAP = 1.8  # kurtosis minus squared skewness of a uniform law
MISFIT_BAR = 2.0  # held-out mean square of the regression on chains
NOISE_BAR = 0.3  # of a posterior's standard deviation: the shift that its own simulation may cause


@dataclass(frozen=True)
class Check:
    """One thing that was checked: whether it held, and what was seen."""

    ok: bool
    why: str


def posterior_checks(campaign: Campaign, region: Region, posterior: Posterior) -> dict[str, Check]:
    """The checks of one model's posterior by name."""
    emulator, parameters, smooth, q = campaign.emulator, region.parameters, region.smooth, len(campaign.names)
    assert emulator is not None and smooth is not None
    embed, some = emulator.embed(region.model), posterior.full[:: max(1, len(posterior.full) // 200)]
    union = {o.name: parameters.union(o.name, some, embed) for o in campaign.observations}
    middle = {name: parameters.union(name, posterior.full.mean(axis=0), embed)[:q] for name in union}
    support = smooth.support(some)
    if support is None:
        support = np.min([image.reweighting.support(union[name][:, :q]) for name, image in emulator.images.items()], axis=0)
        apart = smooth_error(emulator, smooth, campaign.observations, region.kind, some)
        smoothness = Check(apart < SMOOTH_BAR, f"rms error of the log likelihood over the posterior {apart:.3f}, at most {SMOOTH_BAR}")
    else:
        why = f"mean square residual of chains left out {smooth.misfit:.2f} of their error, at most {MISFIT_BAR} (1 if a quadratic will do)"
        smoothness = Check(smooth.misfit < MISFIT_BAR, why)
    off = float(
        emulator_error(emulator, smooth, campaign.observations, posterior.full.mean(axis=0), np.atleast_2d(np.cov(posterior.full.T))).max()
    )
    slow = max(slow_weight(image, middle[name]) for name, image in emulator.images.items())
    shape = min(heaps(image, middle[name]) for name, image in emulator.images.items())
    rounds = max((h["round"] for h in campaign.history), default=0)
    return {
        "rounds": Check(
            region.settled,
            f"posterior {'stood still' if region.settled else 'still moved'} after {rounds} rounds, {len(campaign.design)} chains an image",
        ),
        "support": Check(
            bool((support >= SUPPORT_BAR).all()), f"least support of a draw {support.min():.2f} of a chain, at least {SUPPORT_BAR}"
        ),
        "emulator": smoothness,
        "simulation error": Check(
            off < NOISE_BAR, f"the pool's own error may have moved a mean by {off:.2f} of its standard deviation, at most {NOISE_BAR}"
        ),
        "equilibrium": Check(slow <= SLOW_BAR, f"chains out of equilibrium carry {slow:.1%} of the weight, at most {SLOW_BAR:.0%}"),
        "normality": Check(
            shape > ONE_HEAP,
            f"least kurtosis minus squared skewness of the statistic {shape:.2f}, above {ONE_HEAP} (3 if normal, 1 if two heaps)",
        ),
        "rhat": Check(bool(posterior.rhat.max() < _RHAT_BAR), f"largest R-hat {posterior.rhat.max():.4f}, below {_RHAT_BAR}"),
        "ess": Check(bool(posterior.ess.min() > _ESS_BAR), f"least effective sample size {posterior.ess.min():.0f}, above {_ESS_BAR}"),
        "divergences": Check(posterior.divergences == 0, f"{posterior.divergences} divergent transitions, expected none"),
    }


def heaps(image: ImageEmulator, union: NDArray[np.float64]) -> float:
    """Least kurtosis minus squared skewness among the statistic's whitened components.

    It is 3 for a normal law and for a Poisson law of any mean, 1.8 for a uniform one and 1, the least there
    can be, for two points (Pearson 1916): rare species make the statistic skew and long-tailed, which the
    likelihood survives; two heaps, as in a separating alloy, it does not.
    """
    moments, weights = image.moments(union), image.reweighting.weights(union)
    z = np.linalg.solve(moments.lower, (image.values - moments.mean).T)[image.n_composition :]
    z = z - (z @ weights)[:, None]
    variance = z**2 @ weights
    return float(np.min(z**4 @ weights / variance**2 - (z**3 @ weights) ** 2 / variance**3))
