"""One style for all figures, and the ways out of them: a file, PNG or SVG as text."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import InputError
from ..hamiltonian import Hamiltonian

P = ParamSpec("P")

# Okabe and Ito's palette (2008): told apart with any colour vision, and in grey mostly
SPECIES = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442")
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, GREY, PALE, RANDOM = "#1a1a1a", "#6b6b6b", "#d9d9d9", "#7f7f7f"
ENERGY = "kT at formation"
HATCH = "/////"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so figures are alike everywhere
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.4,
    "hatch.color": "#8a8a8a",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "bayesatoms",  # the same figure gives the same bytes
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under :data:`STYLE`, leaving matplotlib's own settings as they were."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def model_colours(models: Iterable[Hamiltonian]) -> dict[str, str]:
    """A colour for each model by name: grey for the random alloy, the palette in order for the others.

    Parameters
    ----------
    models : iterable of Hamiltonian

    Returns
    -------
    dict of str to str

    Examples
    --------
    >>> from bayesatoms.hamiltonian import Pair
    >>> from bayesatoms.lattice import Lattice
    >>> alloy = dict(lattice=Lattice.square(), species=("A", "B"))
    >>> model_colours([Hamiltonian("R", **alloy), Hamiltonian("P1", Pair("A", "B"), **alloy)])
    {'R': '#7f7f7f', 'P1': '#0072B2'}
    """
    found, used = {}, 0
    for model in models:
        found[model.name] = SERIES[used % len(SERIES)] if model.terms else RANDOM
        used += bool(model.terms)
    return found


def species_colours(n: int) -> tuple[str, ...]:
    """A fill colour for each of n species."""
    return tuple(SPECIES[i % len(SPECIES)] for i in range(n))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) that arranges its own parts."""
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def panels(figure: Figure, n: int, columns: int, **keywords: Any) -> list[Axes]:
    """The first n axes of a grid, the others taken away."""
    rows = -(-n // columns)
    axes = list(figure.subplots(rows, columns, squeeze=False, **keywords).flat)
    for spare in axes[n:]:
        spare.remove()
    return axes[:n]


def thin(values: Sequence, n: int) -> Any:
    """At most about n of a sequence, evenly."""
    return values[:: max(1, len(values) // n)]


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a true minus.

    Examples
    --------
    >>> signed(-0.5, 1), signed(0.25)
    ('−0.5', '+0.250')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 200) -> Path:
    """Write a figure; the suffix says how (.png, .svg, .pdf).

    The file appears whole or not at all: it is written beside its place and then moved there.

    Parameters
    ----------
    figure : Figure
    path : path
    dpi : int
        Pixels per inch of a PNG and of the rasterised parts of the others.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the suffix names no format that matplotlib writes.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"figure path {path} ends in {path.suffix or 'nothing'}; expected .png, .svg or .pdf")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(_rendered(figure, kind, dpi))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def to_png(figure: Figure, *, dpi: int = 200) -> str:
    """The figure as base64 text of a PNG.

    Examples
    --------
    >>> to_png(Figure(figsize=(1, 1)))[:11]
    'iVBORw0KGgo'
    """
    return base64.b64encode(_rendered(figure, "png", dpi)).decode()


def to_svg(figure: Figure, *, dpi: int = 200) -> str:
    """The figure as the text of an SVG; `dpi` is that of its rasterised parts."""
    return _rendered(figure, "svg", dpi).decode()


def _rendered(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # a date would make every file differ
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
