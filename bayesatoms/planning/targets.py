"""What an image is to tell: named targets for expected gains.

A gain (:mod:`~bayesatoms.phases.gain`) takes any function of the posterior draws. These are the three that are asked for most: one
coupling, which model is right, and a band of a phase map (the temperature at which a composition orders, or whether a point of the
map is disordered). What a target knows beside its values (the model it belongs to, the draws it was computed for) goes with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..phases.candidates import Candidate
from ..phases.diagram import PhaseDiagram
from ..phases.gain import Gain, gain_map

if TYPE_CHECKING:
    from ..inference.posterior import Result

Values = Callable[[str, NDArray[np.float64]], ArrayLike] | NDArray[Any]
_NEAR = 1e-6  # within which a composition or temperature is one of the map's
_DRAWS = 100  # where no phase map says how many


@dataclass(frozen=True, eq=False)
class Target:
    """Something that an image may tell about.

    Attributes
    ----------
    name : str
        In words, for tables and pictures.
    values : callable or ndarray
        As :func:`~bayesatoms.phases.gain.gain_map` takes them.
    model : str
        "average", or the one model that it belongs to.
    draws, seed : int or None
        Those of the phase map that the values belong to, in whose order they are; None where any will do.
    notes : tuple of str
        What a reader must know of the values.
    """

    name: str
    values: Values
    model: str = "average"
    draws: int | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()


def coupling(source: Result | Sequence[Candidate], model: str, name: str) -> Target:
    """One coupling, of one model or averaged over all.

    Parameters
    ----------
    source : Result, or sequence of Candidate
    model : str
        The model, or "average": then a model without such a term counts as one in which it is zero.
    name : str
        Of the coupling.

    Returns
    -------
    Target

    Raises
    ------
    InputError
        If the model is not there, or it (of an average: every model) has no such coupling.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> target = coupling([Candidate(h, np.array([[0.1], [0.2]]))], "P1", "w1")
    >>> target.name, target.values("P1", np.array([[0.1], [0.2]])).tolist()
    ('w1 of P1', [0.1, 0.2])
    """
    terms = {m.name: m.names for m in _models(source)}
    if model != "average" and model not in terms:
        raise InputError(f"model {model!r} given; expected average or one of {', '.join(terms)}")
    known = terms if model == "average" else {model: terms[model]}
    if not any(name in names for names in known.values()):
        every = sorted({n for names in known.values() for n in names})
        raise InputError(f"coupling {name!r} given; {model if model != 'average' else 'the models'} have {', '.join(every) or 'none'}")

    def values(of: str, w: NDArray[np.float64]) -> NDArray[np.float64]:
        return w[:, terms[of].index(name)] if name in terms[of] else np.zeros(len(w))

    return Target(f"{name} of {model}" if model != "average" else f"{name}, averaged over the models", values, model)


def model_choice(source: Result | Sequence[Candidate]) -> Target:
    """Which of the models is right: labels, whose entropy an image is to lower.

    Raises
    ------
    InputError
        If there is one model only.

    Examples
    --------
    ``gain_map(result, model_choice(result).values, composition=[0.2, 0.5], temperature=[1.0], seed=1)``
    """
    names = [m.name for m in _models(source)]
    if len(names) < 2:
        raise InputError(f"one model, {', '.join(names)}, given; expected two or more to choose from")
    return Target("which model is right", lambda name, w: np.full(len(w), name))


def boundary(diagram: PhaseDiagram, *, composition: float) -> Target:
    """The temperature at which a composition of a phase map orders or separates.

    A draw without a transition in the range of the map counts with the end of the range beyond which it lies: what is to be
    learned is the transition within the map, and notes say how many draws that concerns.

    Parameters
    ----------
    diagram : PhaseDiagram
        Over compositions, of the same source as the gain. Draws and seed are taken from it.
    composition : float
        One of the map's.

    Returns
    -------
    Target

    Raises
    ------
    InputError
        If the map has no such composition, or no draw has a transition within it.

    Examples
    --------
    ``what_next(result, boundary(phase_diagram(result, composition=[0.5], seed=2), composition=0.5), composition=[0.3, 0.5])``
    """
    raw, t = _transitions(diagram, composition), diagram.dataset.temperature.to_numpy()
    if not np.any((raw > 0) & np.isfinite(raw)):
        raise InputError(
            f"no draw has a transition at composition {composition:g} between {t[0]:g} and {t[-1]:g}; extend the map's temperatures"
        )
    ends = ((raw == 0, f"below {t[0]:g}, or none"), (np.isinf(raw), f"above {t[-1]:g}"))
    notes = tuple(f"{beyond.mean():.0%} of the draws have their transition {where}" for beyond, where in ends if beyond.any())
    values = np.where(raw == 0, t[0], np.minimum(raw, t[-1]))
    return Target(f"transition temperature at x = {composition:g}", values, **_of_map(diagram), notes=notes)


def band(diagram: PhaseDiagram, *, composition: float, temperature: float) -> Target:
    """Whether a point of a phase map is disordered: a label, whose entropy an image is to lower.

    Parameters
    ----------
    diagram : PhaseDiagram
        Over compositions, of the same source as the gain. Draws and seed are taken from it.
    composition : float
        One of the map's.
    temperature : float
        Within the map, relative to formation.

    Returns
    -------
    Target

    Raises
    ------
    InputError
        If the point is not on the map, or all draws agree about it: then there is nothing to learn.

    Examples
    --------
    ``what_next(result, band(diagram, composition=0.5, temperature=0.3), composition=[0.3, 0.5])``
    """
    raw, t = _transitions(diagram, composition), diagram.dataset.temperature.to_numpy()
    if not t[0] <= temperature <= t[-1]:
        raise InputError(f"temperature {temperature:g} given; the map reaches from {t[0]:g} to {t[-1]:g}")
    disordered = raw < temperature
    if disordered.all() or not disordered.any():
        state = "disordered" if disordered.all() else "not disordered"
        raise InputError(f"x = {composition:g}, T = {temperature:g} is {state} for all draws: there is nothing to be learned about it")
    return Target(f"whether x = {composition:g}, T = {temperature:g} is disordered", disordered, **_of_map(diagram))


def _of_map(diagram: PhaseDiagram) -> dict[str, int]:
    return {"draws": int(diagram.dataset.attrs["draws"]), "seed": int(diagram.dataset.attrs["seed"])}


def _transitions(diagram: PhaseDiagram, composition: float) -> NDArray[np.float64]:
    """Transition temperature of each draw at a composition of the map: 0 if there is none in range, inf if it lies above."""
    if "composition" not in diagram.boundaries.dims:
        raise InputError(f"phase map over {diagram.dataset.p_ordered.dims[1]} given; a band needs one over compositions")
    x = diagram.boundaries.composition.to_numpy()
    place = int(np.argmin(np.abs(x - composition)))
    if abs(x[place] - composition) > _NEAR:
        raise InputError(f"composition {composition:g} given; the phase map has {', '.join(f'{v:g}' for v in x)}")
    return diagram.boundaries.transition.isel(composition=place).to_numpy()


def _models(source: Result | Sequence[Candidate]) -> list[Any]:
    if isinstance(source, Sequence):
        return [c.hamiltonian for c in source]
    return [fit.model for fit in source.fits.values()]


_BAND = re.compile(r"(?P<kind>T|phase)\((?P<x>[^,()]+)(?:,(?P<t>[^,()]+))?\)")
_KNOWN = "models, a coupling such as w1 or P1.w1, T(composition), or phase(composition, temperature)"


def named(text: str, source: Result | Sequence[Candidate], diagram: Callable[[float], PhaseDiagram] | PhaseDiagram | None = None) -> Target:
    """A target by its name, as a command line says it.

    Parameters
    ----------
    text : str
        "models"; a coupling, "w1" (averaged over the models) or "P1.w1"; "T(0.5)", the transition temperature at a composition;
        "phase(0.5, 0.3)", whether that composition is disordered at that temperature.
    source : Result, or sequence of Candidate
    diagram : PhaseDiagram, or callable(composition), optional
        The phase map for the last two, or what makes one that holds a composition.

    Returns
    -------
    Target

    Raises
    ------
    InputError
        If it cannot be understood, or there is no such thing.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> named("P1.w1", [Candidate(h, np.array([[0.1], [0.2]]))]).name
    'w1 of P1'
    """
    text = text.strip()
    if text == "models":
        return model_choice(source)
    if found := _BAND.fullmatch(text):
        try:
            x, t = float(found["x"]), None if found["t"] is None else float(found["t"])
        except ValueError:
            raise InputError(f"target {text!r} holds something that is no number; expected {_KNOWN}") from None
        if (t is None) != (found["kind"] == "T") or not 0 < x < 1:
            raise InputError(f"target {text!r} given; expected {_KNOWN}, with a composition between 0 and 1")
        if diagram is None:
            raise InputError(f"target {text!r} needs a phase map over compositions; give one")
        known = diagram(x) if callable(diagram) else diagram
        return boundary(known, composition=x) if t is None else band(known, composition=x, temperature=t)
    if "(" in text or not text:
        raise InputError(f"target {text!r} given; expected {_KNOWN}")
    every = {n for m in _models(source) for n in m.names}
    model, dot, name = text.partition(".")
    return coupling(source, model, name) if dot and text not in every else coupling(source, "average", text)


def what_next(
    source: Result | Sequence[Candidate],
    target: Target | str,
    *,
    composition: ArrayLike | Mapping[str, ArrayLike],
    temperature: ArrayLike = (1.0,),
    sites: int | None = None,
    draws: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> Gain:
    """The ranked list and the map of what one more image is expected to tell about a target.

    Parameters
    ----------
    source : Result, or sequence of Candidate
    target : Target or str
        One of this module's, or the name of one that needs no phase map ("models", "w1", "P1.w1").
    composition, temperature
        Where an image might be taken; temperatures relative to formation, 1 alone by default.
    sites : int, optional
        Atoms in it; by default as many as the images of a Result have environments on average, 500 of other sources.
    draws, seed : int, optional
        As for :func:`~bayesatoms.phases.gain.gain_map`; a target that belongs to a phase map has its own. 100, and the seed of
        the Result, by default.
    **options
        Further arguments of :func:`~bayesatoms.phases.gain.gain_map`.

    Returns
    -------
    Gain

    Raises
    ------
    InputError
        If something cannot be used, or draws or seed are not those of the target's phase map.

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Hamiltonian, Pair
    >>> from bayesatoms.lattice import Lattice
    >>> h = Hamiltonian("P1", Pair("A", "B"), lattice=Lattice.square(), species=("A", "B"))
    >>> source = [Candidate(h, np.linspace(-0.2, 0.2, 64)[:, None])]
    >>> what_next(source, "w1", composition=[0.1, 0.5], seed=1, draws=64, size=12, sweeps=60).best(1)[0].composition
    0.5
    """
    chosen = named(target, source) if isinstance(target, str) else target
    result = None if isinstance(source, Sequence) else source
    for key, given, own in (("draws", draws, chosen.draws), ("seed", seed, chosen.seed)):
        if given is not None and own is not None and given != own:
            raise InputError(f"{key} {given} given; the phase map of {chosen.name} was made with {own}: leave it out")
    if sites is None:
        sites = 500 if result is None else max(2, round(result.n / len(result.observations)))
    if seed is None and chosen.seed is None and result is None:
        raise InputError("no seed given; expected one: the source has none of its own")
    used = chosen.seed if chosen.seed is not None else seed if seed is not None else result.seed  # type: ignore[union-attr]
    if chosen.model != "average" and result is None:
        source = [c for c in source if c.hamiltonian.name == chosen.model]  # type: ignore[union-attr]
    elif result is not None:
        options = {"model": chosen.model, **options}
    many = chosen.draws or draws or _DRAWS
    gain = gain_map(source, chosen.values, composition=composition, temperature=temperature, sites=sites, draws=many, seed=used, **options)
    notes = [*chosen.notes, *gain.notes]
    return Gain(gain.dataset.assign_attrs(target=chosen.name, notes=notes))
