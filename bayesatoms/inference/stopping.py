"""When enough images were taken: rules whose error is stated.

Two things may be asked for, and whichever is asked for must be reached.

*Widths*: the posterior standard deviation of a coupling. A width depends on what was seen, but whoever stops because
the posterior is narrow enough still has the right posterior: the likelihood of the images does not change because
nobody took more of them (the stopping rule principle; Berger and Wolpert, The Likelihood Principle, 1988, section 4.2).
What is uncertain is the width itself, which rests on a finite simulation: its upper bound at the stated error counts.

*A decision* between the candidate models. While one model makes the images, the ratio of the marginal likelihood of any
other to its own is a martingale that begins at 1, so the chance that it ever reaches 1/a, at any time whatsoever, is
at most a (Ville, Étude critique de la notion de collectif, 1939; Robbins, Ann. Math. Stat. 41, 1397, 1970). Odds may be
looked at after every image. With m candidates a decision asks for odds of (m - 1) / error against every rival: the mean
of the m - 1 ratios is such a martingale too, and it is at least 1 / error once any of them is (m - 1) / error. So
the chance of ever deciding against the model that made the images is at most the error, and a model decided for has a
posterior weight of at least 1 / (1 + error). Here "makes the images" means with couplings drawn from its prior; for the
random alloy, which has none, it is meant literally.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from ..errors import InputError
from ..hamiltonian import Hamiltonian


@dataclass(frozen=True, eq=False)
class Estimate:
    """What is known of one model's couplings: posterior mean and sd (k,) in kT at formation, and their Monte Carlo errors (k,)."""

    names: tuple[str, ...]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    mean_error: NDArray[np.float64]
    sd_error: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidences:
    """Log evidences of all models, and how they go together.

    Attributes
    ----------
    names : tuple of str
    log_z : dict of ndarray, shape (models,), by prior scale
    covariance : ndarray, shape (models, models)
        Of their Monte Carlo errors, of the pool and of the integrals.
    """

    names: tuple[str, ...]
    log_z: Mapping[float, NDArray[np.float64]]
    covariance: NDArray[np.float64]

    def weights(self, scale: float = 1.0) -> dict[str, float]:
        """Posterior weight of each model, equal ones before.

        Examples
        --------
        >>> Evidences(("R", "P1"), {1.0: np.log([1.0, 3.0])}, np.zeros((2, 2))).weights()
        {'R': 0.25, 'P1': 0.75}
        """
        raw = np.exp(self.log_z[scale] - self.log_z[scale].max())
        return {name: round(float(w), 12) for name, w in zip(self.names, raw / raw.sum(), strict=True)}

    def lead(self, error: float = 0.5) -> tuple[str, str, float]:
        """The model ahead under the declared priors, its closest rival, and its log odds against it.

        The least under any prior scale, less as many Monte Carlo errors as leave a chance of `error`: none at one half.
        """
        first = int(np.argmax(self.log_z[1.0 if 1.0 in self.log_z else next(iter(self.log_z))]))
        c, z = self.covariance, float(norm.isf(error))
        noise = np.sqrt(np.maximum(c[first, first] + np.diag(c) - 2 * c[first], 0.0))
        odds = np.min([values[first] - values for values in self.log_z.values()], axis=0) - z * noise
        odds[first] = np.inf
        rival = int(np.argmin(odds))
        return self.names[first], self.names[rival], float(odds[rival])


@dataclass(frozen=True)
class Verdict:
    """Whether to stop, and why in words.

    Attributes
    ----------
    stop : bool
    sentence : str
        What was reached with which error, or what is still missing.
    decided : str or None
        The model decided for, if a decision was asked for and reached.
    missing : int or None
        Images like those so far that the widths still need, by 1 / sqrt(n); None where no width is asked for.
    """

    stop: bool
    sentence: str
    decided: str | None = None
    missing: int | None = None

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class StopRule:
    """When to stop taking images. All that is asked for must be reached; without anything asked for it never stops.

    Parameters
    ----------
    sd : mapping of "model.coupling" to kT
        Largest posterior standard deviation wanted. One of a model that was decided against is not waited for.
    decide : bool
        Whether one model is to be left: odds of (models - 1) / error against every rival under priors of half, once
        and twice the declared width.
    error : float
        Of each statement: the chance that a width is larger than wanted by its Monte Carlo error, the chance of ever
        deciding against the model that made the images, and the chance that Monte Carlo noise made up the odds.
    most : int, optional
        Images after which to stop in any case.

    Raises
    ------
    InputError
        If a number is out of its range.

    Notes
    -----
    Ville's inequality is exact for exact marginal likelihoods. For the calibrated likelihood, which is one by the law of the
    statistic, it is checked on simulated random alloys: ``benchmarks/sequential.py misled`` counts how often a
    session ever decides for an interaction.

    Examples
    --------
    >>> rule = StopRule(sd={"P1.w1": 0.03})
    >>> known = Estimate(("w1",), np.array([0.2]), np.array([0.028]), np.array([0.002]), np.array([0.0005]))
    >>> print(rule.judge(4, {"P1": known}))
    Stop after 4 images: the sd of P1.w1 is 0.0280 kT (at most 0.0288 with 95 % confidence), 0.03 wanted.
    """

    sd: Mapping[str, float] = field(default_factory=dict)
    decide: bool = False
    error: float = 0.05
    most: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.sd.items():
            if not (np.isfinite(value) and value > 0):
                raise InputError(f"stop rule: sd of {name} is to be {value:g}; expected a number above 0, in kT")
        if not 0 < self.error < 0.5:
            raise InputError(f"stop rule: error {self.error:g}; expected a number between 0 and 0.5, such as 0.05")
        if self.most is not None and self.most < 1:
            raise InputError(f"stop rule: at most {self.most} images; expected at least 1")

    def check(self, models: Sequence[Hamiltonian]) -> None:
        """Refuse targets that these models do not have.

        Raises
        ------
        InputError
            Naming what there is.
        """
        known = [f"{m.name}.{n}" for m in models for n in m.names]
        for name in self.sd:
            if name not in known:
                raise InputError(f"stop rule: sd names {name!r}; expected one of {', '.join(known)}")
        if self.decide and len(models) < 2:
            raise InputError(f"stop rule: nothing to decide between with one model, {models[0].name}; add a model or leave decide out")

    def odds(self, models: int) -> float:
        """Odds against every rival that a decision between so many models asks for.

        Examples
        --------
        >>> StopRule(error=0.05).odds(3)
        40.0
        """
        return (models - 1) / self.error

    def decision(self, evidences: Evidences) -> str | None:
        """The model decided for, or None: its odds against every rival suffice, whatever the Monte Carlo noise."""
        name, _, least = evidences.lead(self.error)
        return name if least >= np.log(self.odds(len(evidences.names))) else None

    def judge(
        self, images: int, estimates: Mapping[str, Estimate], evidences: Evidences | None = None, failed: Sequence[str] = ()
    ) -> Verdict:
        """Whether to stop after so many images, knowing this much of the couplings and of the models.

        Nothing counts as reached while checks `failed`: more images, or several at once, give the chains a smaller place to cover.
        """
        reached, missing = [], None
        lacking = [f"not to be relied on yet, failed checks {', '.join(failed)}"] if failed else []
        decided = None
        if self.decide and evidences is not None:
            decided = self.decision(evidences)
            (reached if decided else lacking).append(self._odds_in_words(evidences, decided))
        for name, target in self.sd.items():
            model, _, coupling = name.partition(".")
            if decided not in (None, model):
                continue
            found = estimates[model]
            place = found.names.index(coupling)
            sd = float(found.sd[place])
            most = sd + float(norm.isf(self.error)) * float(found.sd_error[place])
            bound = f"at most {most:.4f} with {1 - self.error:.0%} confidence".replace("%", " %")
            (reached if most <= target else lacking).append(f"the sd of {name} is {sd:.4f} kT ({bound}), {target:g} wanted")
            more = max(0, int(np.ceil(images * (most / target) ** 2)) - images)
            missing = max(missing or 0, more)
        return self._verdict(images, reached, lacking, decided, missing)

    def _verdict(self, images: int, reached: list[str], lacking: list[str], decided: str | None, missing: int | None) -> Verdict:
        n = f"{images} image{'s' if images != 1 else ''}"
        if reached and not lacking:
            return Verdict(True, f"Stop after {n}: {'; '.join(reached)}.", decided, missing)
        if self.most is not None and images >= self.most:
            what = f" without what was wanted: {'; '.join(lacking)}" if lacking else ""
            return Verdict(True, f"Stop after {n}, the most allowed{what}.", decided, missing)
        if not lacking:
            return Verdict(False, f"{n} so far; no rule says when to stop.", decided, missing)
        more = f" About {missing} more like these would do for the widths." if missing else ""
        return Verdict(False, f"Go on after {n}: {'; '.join([*lacking, *reached])}.{more}", decided, missing)

    def _odds_in_words(self, evidences: Evidences, decided: str | None) -> str:
        first, rival, odds = evidences.lead()
        wanted, declared = self.odds(len(evidences.names)), evidences.weights().get(first, 0.0)
        said = f"the odds of {first} against {rival} are {_ratio(odds)} under the least favourable prior width, {wanted:g} to 1 wanted"
        if decided is None:
            _, _, least = evidences.lead(self.error)
            noisy = odds >= np.log(wanted) > least
            return f"{said}{', but Monte Carlo noise may have made that up' if noisy else ''}"
        chance = f"the chance of ever deciding against the right one is at most {self.error:.2g}"
        return f"{first} is decided for with weight {declared:.3f}: {said}; {chance}"


def targets(words: Sequence[str]) -> dict[str, float]:
    """Widths wanted, as typed.

    Raises
    ------
    InputError
        If one is not of the form model.coupling=number.

    Examples
    --------
    >>> targets(["P1.w1=0.03"])
    {'P1.w1': 0.03}
    """
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise InputError(f"sd is {word!r}; expected model.coupling=number, such as P1.w1=0.03") from None
    return found


def _ratio(log_odds: float) -> str:
    """Odds in words.

    Examples
    --------
    >>> _ratio(np.log(43.0)), _ratio(np.log(0.2)), _ratio(30.0)
    ('43 to 1', '0.2 to 1', 'over 10000 to 1')
    """
    return "over 10000 to 1" if log_odds > np.log(1e4) else f"{np.exp(log_odds):.2g} to 1"
