"""Tracking: the posteriors of a campaign to which images are added one by one.

A new image gets chains over the posteriors as they were before it; one of a box that was simulated before takes the
chains of that box. Then every posterior is found anew from the pieces of all images. Pieces are kept while the posterior
stays inside the region for which they were made, and chains are added to a box only where they are too few for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckError
from ..observation import Observation
from .campaign import Campaign
from .densities import SMOOTH_BAR, emulator_error, explore
from .emulator import SUPPORT_BAR, Emulator
from .parameters import Parameters
from .pieces import Piece, together
from .regions import Region, Search, found_on, moved
from .reuse import Box, Point
from .smooth import SmoothEmulator
from .threads import side_by_side

_LOOKS = 4  # fits in pursuit of one posterior, at most, before chains are added
_FAR = 1.0  # standard deviations of a fitted region that a posterior may lie from its centre,
_NARROW, _WIDE = 1 / 1.75, 1.25  # and how narrow or wide it may be beside it, for its polynomials to be kept
_ROUNDS = 3  # of new chains for one update, at most: what they leave open the chains of the next image may settle
_OVER = 256  # draws at which support is looked at


@dataclass(frozen=True, eq=False)
class Tracked(Region):
    """A region and the pieces that its polynomials are made of, by image name; `thin` are images whose chains had no support there."""

    pieces: Mapping[str, Piece] = field(default_factory=dict)
    thin: frozenset[str] = frozenset()

    @classmethod
    def of(cls, region: Region) -> Tracked:
        """One of which only the place is known."""
        return cls(region.parameters, region.kind, region.centre, region.cov, region.draws, widest=region.widest)

    @property
    def error(self) -> float | None:
        """Rms error of the polynomials' log likelihood over the region; None where they are a regression on chains."""
        groups: dict[bytes, list[float]] = {}
        for piece in self.pieces.values():
            groups.setdefault(piece.image.reweighting.couplings.tobytes(), []).append(piece.error)
        found = together(list(groups.values()))
        return found if np.isfinite(found) else None

    @property
    def close(self) -> bool:
        """Whether the polynomials are close to their chains, with some room for the check of that."""
        return self.error is None or self.error < 0.8 * SMOOTH_BAR


def welcome(campaign: Campaign, images: Sequence[Observation], regions: Sequence[Tracked]) -> None:
    """Admit images and run their first chains: those of a box that is known, else the random alloy's and some over every region.

    Raises
    ------
    InputError
        If one of them does not belong with the models or the other images.
    """
    points: list[Point] = []
    for o in images:
        known = {campaign.box(other.name): other.name for other in reversed(campaign.observations)}
        campaign.admit(o)
        twin = known.get(box := campaign.box(o.name))
        if twin is not None:
            points += [replace(p, image=o.name) for p in [*campaign.design, *points] if p.image == twin]
            continue
        points += campaign.named({o.name: np.zeros((1, len(campaign.names)))})
        for region in regions:
            search = replace(campaign.search, mark=_mark(box))
            spread = search.points(replace(region, draws=region.draws[:0]), 0)
            points += campaign.named({o.name: spread @ search.emulator.embed(region.model)})
    campaign.gather(points)


def settle(campaign: Campaign, regions: Sequence[Tracked], key: Sequence[int]) -> list[Tracked]:
    """The posteriors on all images that were admitted; chains are run where there are too few, in a few rounds at most.

    Parameters
    ----------
    campaign : Campaign
    regions : sequence of Tracked
        As they were before; or where to look first.
    key : sequence of int
        Of the random numbers.

    Returns
    -------
    list of Tracked
    """
    found = [replace(r, parameters=Parameters.of(r.model, campaign.observations)) for r in regions]
    known = any(len(r.draws) for r in regions)
    rounds = min(campaign.settings.rounds, _ROUNDS) if known else campaign.settings.rounds
    for number in range(rounds + 1):
        search = campaign.search
        found = side_by_side(partial(_locate, search, [*key, number]), found, campaign.threads)
        wanted = [p for r in found for p in _wanted(campaign, search, r)]
        if not wanted or number == rounds:
            break
        campaign.gather(campaign.exchange(list(dict.fromkeys(wanted)), found))
    return found


# ---------------------------------------------------------------------- where a posterior is


def _locate(search: Search, key: Sequence[int], region: Tracked) -> Tracked:
    """The posterior on the chains there are: polynomials fitted where it is believed to be, until it is found there."""
    rng = np.random.default_rng(np.random.SeedSequence([search.seed, 41, *key, *np.frombuffer(region.model.name.encode(), np.uint8)]))
    region, known, anew = replace(region, settled=False), region.pieces, False
    for _ in range(_LOOKS):
        before, region = region, _pieced(search, region, rng, anew)
        if region.thin:
            break
        assert region.smooth is not None
        region = found_on(region.smooth, region, explore(region.smooth, search.observations, region.kind, rng))
        if region.beyond:
            continue
        # an odd shape may never look at home in an ellipsoid: it is enough that a new fit finds it where the last one did
        again = before.smooth is not None and moved(before, region) < search.settings.moved
        if again or _snug(region.smooth, region.centre, region.cov):
            region = _judged(search, replace(region, settled=True), known)
            if anew or region.close:
                break
            anew = True  # what was kept is too rough for where the posterior is now
    return region if region.thin else _judged(search, region, known)


def _pieced(search: Search, region: Tracked, rng: np.random.Generator, anew: bool) -> Tracked:
    """Pieces of all images: those that were made about this place and of these very chains are kept, unless all are to be made anew."""
    images, smooth, centre, cov = search.emulator.images, region.smooth, region.centre, region.cov
    keep = smooth is not None and not anew and not region.beyond and _snug(smooth, centre, cov)
    if smooth is not None and keep:
        centre, cov = smooth.centre, smooth.scale @ smooth.scale.T
    pieces, thin = {}, set()
    for o in search.observations:
        old = region.pieces.get(o.name)
        if keep and old is not None and old.image is images[o.name]:
            pieces[o.name] = old
            continue
        try:
            smooth = SmoothEmulator.fit(_alone(search.emulator, o.name), region.parameters, centre, cov, rng)
            pieces[o.name] = Piece(images[o.name], smooth.patches[o.name])
        except CheckError:
            thin.add(o.name)
    if thin or smooth is None:
        return replace(region, thin=frozenset(thin))
    whole = replace(smooth, parameters=region.parameters, patches={n: p.patch for n, p in pieces.items()})
    return replace(region, smooth=whole, pieces=pieces, thin=frozenset())


def _judged(search: Search, region: Tracked, known: Mapping[str, Piece]) -> Tracked:
    """The region with all of its pieces held against their chains; `known` are those of before."""
    pieces = {o.name: region.pieces[o.name].judged(search.emulator, o, region, known.get(o.name)) for o in search.observations}
    return replace(region, pieces=pieces)


def _snug(smooth: SmoothEmulator, centre: NDArray[np.float64], cov: NDArray[np.float64]) -> bool:
    """Whether a posterior lies well inside the region of its polynomials and is about as wide."""
    widths = np.sqrt(np.linalg.eigvalsh(smooth.inverse @ cov @ smooth.inverse.T))
    away = float(np.linalg.norm(smooth.whitened(centre[None])))
    return bool(away < _FAR and widths.min() > _NARROW and widths.max() < _WIDE)


# ---------------------------------------------------------------------- where chains are wanted


def _wanted(campaign: Campaign, search: Search, region: Tracked) -> list[Point]:
    """Chains wanted for one posterior: over it in boxes that know it too little, and on the way there from the random alloy."""
    boxes: dict[Box, list[str]] = {}
    for o in search.observations:
        boxes.setdefault(campaign.box(o.name), []).append(o.name)
    lacking, points = _lacking(search, region, boxes), []
    for box, names in boxes.items():
        # chains of one box serve all of its images, so one of them speaks for all
        one, number = names[0], len(campaign.records[names[0]][0])
        own = replace(search, emulator=_alone(search.emulator, one), mark=_mark(box))
        places = [own.points(_own(region, one), number) @ search.emulator.embed(region.model)] if box in lacking else []
        if not region.thin:
            places += own.stones(region).values()
        for place in places:
            points += campaign.named(dict.fromkeys(names, place))
    return points


def _lacking(search: Search, region: Tracked, boxes: Mapping[Box, Sequence[str]]) -> set[Box]:
    """Boxes that need more chains."""
    if region.thin:
        return {box for box, names in boxes.items() if region.thin & set(names)}
    if not region.settled:
        return set(boxes)  # it was still moving: everywhere, as in a round of a campaign
    assert region.smooth is not None
    emulator, s, found = search.emulator, search.settings, set()
    some = region.draws[:: max(1, len(region.draws) // _OVER)]
    union = region.centre @ emulator.embed(region.model)
    quiet = emulator_error(emulator, region.smooth, search.observations, region.centre, region.cov).max() < s.noise
    for box, names in boxes.items():
        own, image = replace(search, emulator=_alone(emulator, names[0])), emulator.images[names[0]]
        support = own.supports(_own(region, names[0]), some)
        held = np.quantile(support, 0.05) > s.support and support.min() > 2 * SUPPORT_BAR
        known = quiet or image.reweighting.effective_records(union) * s.noise**2 >= image.shared
        near = region.close or sum(region.pieces[n].error for n in names) < 0.8 * SMOOTH_BAR / np.sqrt(len(boxes))
        free = names[0] in search.exchanging or not search.slow(names[0], [region])
        if not (held and known and near and free):
            found.add(box)
    return found


def _alone(emulator: Emulator, image: str) -> Emulator:
    return replace(emulator, images={image: emulator.images[image]})


def _own(region: Tracked, image: str) -> Tracked:
    """The region as one image's polynomials see it."""
    if region.smooth is None or image not in region.smooth.patches:
        return replace(region, smooth=None)
    return replace(region, smooth=replace(region.smooth, patches={image: region.smooth.patches[image]}))


def _mark(box: Box) -> tuple[int, ...]:
    """A box as part of a key of random numbers: its chains do not depend on when, or after which others, its images came."""
    return (*box.shape, *box.atoms)
