"""A plan: what more images would tell, as numbers and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.optimize import isotonic_regression

from ..errors import CheckError, InputError
from ..files import write_dataset
from .precision import Precision

POWER = 0.8  # wanted probability that the experiment decides for the true model
SURE = 2.0  # standard errors by which a predicted power must exceed the one that is wanted
AVERAGE = "average"


class Choice(NamedTuple):
    """What is needed at a composition: images (infinite if more than were tried) and environments, and the value reached with its error."""

    composition: float | str
    images: float
    environments: float
    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Plan:
    """Predictions for images still to be taken.

    Attributes
    ----------
    dataset : Dataset
        Over (coupling, composition, images): `sd` with `sd_low`, `sd_high` (central 90 % over the posterior) and `sd_error` (of the
        simulation), `sd_alone` from such images alone. Over (coupling, composition): `information` of one image with its error.
        `law` (composition): x^2 (1 - x)^2 relative to x = 1/2. Over (truth, composition, images): `power`, `power_error`, `wrong`
        (decided for another model), `inside` (share of experiments whose posteriors lie where the likelihoods are known).
        `present_sd` (coupling); over images so far: `past_environments`, `past_sd`, `past_information`. `settled` (composition):
        whether chains equilibrate there. Couplings are "MODEL.NAME", in kT at formation.
    precisions : mapping of (model, composition) to Precision
    targets : mapping of coupling to float
        Wanted standard deviations; half the present ones unless told.
    """

    dataset: xr.Dataset
    precisions: Mapping[tuple[str, int], Precision]
    targets: Mapping[str, float]
    notes: tuple[str, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """The candidates to be told apart."""
        return tuple(np.atleast_1d(self.dataset.attrs["models"]).tolist())

    @property
    def environments(self) -> int:
        """Complete environments of one more image."""
        return int(self.dataset.attrs["environments"])

    def best(self, what: str | None = None, n: int = 5, *, goal: float | None = None) -> list[Choice]:
        """Compositions, the one that needs fewest images first.

        Parameters
        ----------
        what : str, optional
            A truth ("M", or "average" over all) or a coupling ("P1.w1"); by default the first truth that there is.
        n : int
            How many compositions to return; those whose chains do not equilibrate are left out.
        goal : float, optional
            Wanted power, 0.8 by default, or standard deviation, the plan's target by default.

        Raises
        ------
        InputError
            If there is no such truth or coupling, or the goal is none.
        """
        d, what = self.dataset, what or self._first
        goal = goal if goal is not None else self.targets.get(what, POWER)
        truths, couplings = d.truth.values, d.coupling.values
        power = what in truths
        if not power and what not in couplings:
            raise InputError(f"{what!r} is neither a truth ({listed(truths)}) nor a coupling ({listed(couplings)}) of this plan")
        if not (0 < goal < 1 if power else goal > 0):
            wanted = "a power between 0 and 1" if power else "a standard deviation above 0, in kT"
            raise InputError(f"goal {goal:g} given for {what}; expected {wanted}")
        find = self._power_needed if power else self._sd_needed
        found = [find(what, goal, i) for i in range(d.sizes["composition"]) if bool(d.settled[i])]
        return sorted((c for c in found if np.isfinite(c.value)), key=lambda c: (c.images, -c.value if power else c.value))[:n]

    def needed(self, what: str | None = None, goal: float | None = None, *, composition: float | str | None = None) -> Choice:
        """How many more images reach a power or a standard deviation, at one composition or at the best.

        Examples
        --------
        ``plan(result).needed("P1.w1", 0.025).images``

        Raises
        ------
        InputError
            As :meth:`best`, or if the composition was not planned for.
        CheckError
            If nothing can be said at any composition.
        """
        found = self.best(what, len(self.dataset.composition), goal=goal)
        if composition is not None:
            here = [c for c in found if _same(c.composition, composition)]
            if not any(_same(x, composition) for x in self.dataset.composition.values.tolist()):
                raise InputError(f"composition {composition} was not planned for; there are {listed(self.dataset.composition.values)}")
            found = here
        if not found:
            raise CheckError(f"nothing can be predicted there: {' '.join(self.notes)}")
        return found[0]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the dataset as netCDF, whole or not at all."""
        return write_dataset(self.dataset, path)

    def __str__(self) -> str:
        d, n = self.dataset, self.environments
        lines = [f"So far {d.sizes['image']} images, {int(d.past_environments[-1]):,} environments; one more image has {n:,}."]
        lines += [self._told(str(t)) for t in d.truth.values]
        lines += [self._known(str(c)) for c in d.coupling.values]
        return "\n".join([*lines, *self.notes])

    # ------------------------------------------------------------------ how many

    @property
    def _first(self) -> str:
        truths = self.dataset.truth.values.tolist()
        return str(AVERAGE if AVERAGE in truths else truths[0] if truths else self.dataset.coupling.values[0])

    def _power_needed(self, truth: str, goal: float, i: int) -> Choice:
        at = self.dataset.sel(truth=truth).isel(composition=i)
        images, value, error = at.images.to_numpy(), at.power.to_numpy(), at.power_error.to_numpy()
        x = at.composition.item()
        if not np.isfinite(value).all():
            return Choice(x, np.inf, np.inf, np.nan, np.nan)
        # power rises with the images; what falls is the noise of the experiments
        smooth = isotonic_regression(value).x
        above = smooth - SURE * error >= goal
        if not above.any():
            return Choice(x, np.inf, np.inf, float(smooth[-1]), float(error[-1]))
        j = int(np.argmax(above))
        if j == 0:
            return Choice(x, 0.0, 0.0, float(smooth[0]), float(error[0]))
        safe = smooth - SURE * error
        share = (goal - safe[j - 1]) / (safe[j] - safe[j - 1])
        number = float(np.ceil(np.exp(np.log(images[j - 1] + 1) * (1 - share) + np.log(images[j] + 1) * share) - 1 - 1e-9))
        return Choice(x, number, number * self.environments, float(np.interp(number, images, smooth)), float(error[j]))

    def _sd_needed(self, coupling: str, goal: float, i: int) -> Choice:
        model = coupling.split(".", 1)[0]
        x = self.dataset.composition.values.tolist()[i]
        found = self.precisions.get((model, i))
        if found is None:
            return Choice(x, np.inf, np.inf, np.nan, np.nan)
        a = [c for c in self.dataset.coupling.values.tolist() if c.startswith(f"{model}.")].index(coupling)
        images = found.needed(a, goal)
        reached = found.predicted(images if np.isfinite(images) else 10**9)
        return Choice(x, images, images * self.environments, float(reached.sd[a]), float(reached.error[a]))

    # ------------------------------------------------------------------ in words

    def _told(self, truth: str) -> str:
        best, most = self.best(truth, 1), int(self.dataset.images[-1])
        aim = f"To tell {_and(self.models)} apart {self.words[truth]}:"
        if not best:
            return f"{aim} nothing can be said."
        c = best[0]
        power = f"power {c.value:.2f} ± {c.error:.2f}"
        if not np.isfinite(c.images):
            return f"{aim} more than {most} images at any composition that was tried ({power} at x = {at_x(c.composition)})."
        if c.images == 0:
            return f"{aim} no more images are needed ({power})."
        return f"{aim} {c.images:.0f} more images of {self.environments:,} environments at x = {at_x(c.composition)} ({power})."

    def _known(self, coupling: str) -> str:
        now, best = float(self.dataset.present_sd.sel(coupling=coupling)), self.best(coupling, 1)
        if not best or not np.isfinite(best[0].images):
            return f"sd of {coupling}: {now:.2g} now; {self.targets[coupling]:.2g} is out of reach."
        c = best[0]
        if c.images == 0:
            return f"sd of {coupling}: {now:.2g} now, {self.targets[coupling]:.2g} is reached."
        many = f"{c.images:.0f} more at x = {at_x(c.composition)} ({c.environments:,.0f} environments)"
        return f"sd of {coupling}: {now:.2g} now, {c.value:.2g} after {many}."


def _same(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, str) or isinstance(other, str) else bool(np.isclose(one, other))


def at_x(label: Any) -> str:
    """A composition in words."""
    return label if isinstance(label, str) else f"{label:.4g}"


def listed(names: Any) -> str:
    """Names in a row."""
    return ", ".join(map(str, names)) or "none"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
