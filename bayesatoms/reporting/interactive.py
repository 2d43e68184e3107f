"""The phase map to explore: a figure whose every point tells its values, drawn by plotly where that is installed.

The library travels compressed within the fragment, once, so the page still needs no other file and no network; a
browser that runs no scripts shows the static figures alone.
"""

from __future__ import annotations

import base64
import gzip
from functools import cache
from html import escape
from importlib.util import find_spec
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..phases.diagram import PhaseDiagram
from ..plots.phases import BOUNDARY, SUPPORTED, across, across_label, boundary_lines, cell_edges, most_order
from ..plots.style import INK, thin

_MOST_DRAWS = 60
_UNSETTLED = 0.5
_TICKS = [n * 10.0**k for k in range(-4, 4) for n in (1, 2, 5)]
# name: label, colour scale, lower and upper end (None: of the data)
_SHOWN: dict[str, tuple[str, str, float | None, float | None]] = {
    "order_parameter": ("order parameter", "Blues", 0.0, None),
    "warren_cowley": ("Warren–Cowley α₁", "PuOr", None, None),
    "p_ordered": ("P(ordered)", "Blues", 0.0, 1.0),
    "p_separated": ("P(separated)", "Oranges", 0.0, 1.0),
    "p_disordered": ("P(disordered)", "Greys", 0.0, 1.0),
    "p_coexistence": ("P(coexistence)", "Oranges", 0.0, 1.0),
    "heat_capacity": ("heat capacity, k a site", "YlOrRd", 0.0, None),
    "energy": ("energy, kT at formation a site", "Viridis", None, None),
    "chemical_potential": ("chemical potential, kT at formation", "RdBu", None, None),
    "mean_composition": ("mean composition", "Viridis", 0.0, 1.0),
    "disagreement": ("disagreement of the models, bits", "Purples", 0.0, None),
}
_SCRIPT = """
(async () => {
  const text = document.getElementById("plotly-gz").textContent;
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const library = document.createElement("script");
  library.textContent = await new Response(stream).text();
  document.head.append(library);
  const map = JSON.parse(document.getElementById("phase-data").textContent);
  document.getElementById("phase-live").hidden = false;
  await Plotly.newPlot("phase-plot", map.data, map.layout, {
    displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });
})().catch(() => { document.getElementById("phase-live").hidden = true; });
"""


def phase_fragment(diagram: PhaseDiagram) -> str | None:
    """The map as HTML to put into a page: one figure, its data, and the library that draws it.

    Parameters
    ----------
    diagram : PhaseDiagram

    Returns
    -------
    str or None
        None where plotly is not installed.
    """
    if find_spec("plotly") is None:
        return None
    # within a script element only "<" could end it or begin markup
    data = _figure(diagram).to_json().replace("<", "\\u003c")
    caption = (
        "Point at a cell for its medians, 5–95 % intervals and probabilities; choose above what the colours show; drag to enlarge, "
        "click twice to return; a click on the legend hides a part."
    )
    return (
        '<figure id="phase-live" class="live" hidden><div id="phase-plot"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
        f'<script type="application/json" id="phase-data">{data}</script>\n'
        f'<script type="text/plain" id="plotly-gz">{_library()}</script>\n'
        f"<script>{_SCRIPT}</script>"
    )


@cache
def _library() -> str:
    """plotly.js, compressed, as base64."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def _figure(diagram: PhaseDiagram) -> Any:
    import plotly.graph_objects as go

    d = diagram.dataset
    x_edges, t_edges = cell_edges(d)
    shown = {name: about for name, about in _SHOWN.items() if name in d.data_vars and np.isfinite(_middle(d, name)).any()}
    [first, *_] = shown
    figure = go.Figure()
    figure.add_heatmap(
        x=x_edges.tolist(), y=t_edges.tolist(), text=_hover(d), hoverinfo="text", name="", colorbar={"len": 0.9, "thickness": 14},
        **_colours(d, first),
    )  # fmt: skip
    _lines(figure, diagram)
    _marks(figure, d)
    buttons = []
    for name, about in shown.items():
        given = _colours(d, name)
        buttons.append({"label": about[0], "method": "restyle", "args": [{k: [v] for k, v in given.items()}, [0]]})
    figure.update_layout(
        template="none", height=580, margin={"l": 70, "r": 20, "t": 60, "b": 90}, hoverlabel={"align": "left", "bgcolor": "white"},
        font={"family": "Source Sans 3, Segoe UI, Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.15, "yanchor": "top"},
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "bgcolor": "white"}],
        xaxis={"title": {"text": escape(across_label(d).replace("\n", " "))}, "range": x_edges[[0, -1]].tolist(), "zeroline": False},
        yaxis={
            "title": {"text": "temperature / formation temperature"}, "type": "log", "range": np.log10(t_edges[[0, -1]]).tolist(),
            "tickvals": _TICKS, "ticktext": [f"{t:g}" for t in _TICKS],
        },
    )  # fmt: skip
    return figure


def _colours(d: xr.Dataset, name: str) -> dict[str, Any]:
    """What of the heat map depends on the quantity shown."""
    from plotly.colors import get_colorscale

    _, scale, low, high = _SHOWN[name]
    values = _middle(d, name)
    low, high = (float(np.nanmin(values)) if low is None else low), (float(np.nanmax(values)) if high is None else high)
    if name == "order_parameter":
        high = most_order(d)
    if name in ("warren_cowley", "chemical_potential"):  # colours that part at zero
        high = max(abs(low), abs(high))
        low = -high
    return {
        "z": _rounded(values),
        "colorscale": get_colorscale(scale),
        "reversescale": name == "warren_cowley",
        "zmin": low,
        "zmax": max(high, low + 1e-6),
    }


def _middle(d: xr.Dataset, name: str) -> NDArray[np.float64]:
    values = d[name].sel(quantile=0.5) if "quantile" in d[name].dims else d[name]
    return values.to_numpy()


def _rounded(values: NDArray[np.float64]) -> list:
    """Four digits are all that a colour shows, and keep the page small; None is left blank."""
    return [[float(f"{v:.4g}") if np.isfinite(v) else None for v in row] for row in values]


def _hover(d: xr.Dataset) -> list[list[str]]:
    """What every cell says."""
    label = escape(across_label(d).splitlines()[0])
    rows = []
    for row, t in enumerate(d["temperature"].to_numpy()):
        kelvin = f" ({float(d['kelvin'][row]):.4g} K)" if "kelvin" in d.coords else ""
        line = []
        for column, x in enumerate(d[across(d)].to_numpy()):
            here = d.isel({"temperature": row, across(d): column})
            said = [f"<b>{label} {x:.3g}, temperature {t:.3g}{kelvin}</b>"]
            for name, about in _SHOWN.items():
                if name not in d.data_vars:
                    continue
                if "quantile" in d[name].dims:
                    low, middle, high = (float(here[name].sel(quantile=q)) for q in (0.05, 0.5, 0.95))
                    known = f"{middle:.3g} [{low:.3g}, {high:.3g}]" if np.isfinite(middle) else "not known for all draws"
                    said.append(f"{about[0]}: {known}")
                else:
                    said.append(f"{about[0]}: {float(here[name]):.2f}")
            said.append(f"atoms still move: {100 * float(here['supported']):.0f} % of the draws")
            said.append(f"not in equilibrium: {100 * float(here['hysteresis']):.0f} % of the draws")
            if bool(here["extrapolated"]):
                said.append("beyond the compositions of all images")
            line.append("<br>".join(said).replace("-", "−"))
        rows.append(line)
    return rows


def _lines(figure: Any, diagram: PhaseDiagram) -> None:
    """Single draws of the boundary as one line with gaps, its median, and its 5 and 95 %."""
    b = diagram.boundaries
    x, draws = boundary_lines(diagram.dataset, thin(b["transition"].to_numpy(), _MOST_DRAWS))
    every_x, every_t = np.tile(np.append(x, np.nan), len(draws)), np.column_stack([draws, np.full(len(draws), np.nan)]).ravel()
    low, middle, high = boundary_lines(diagram.dataset, b["transition_band"].to_numpy())[1]
    both_x, both_t = np.concatenate([x, [np.nan], x]), np.concatenate([low, [np.nan], high])
    for name, at, t, line in (
        ("single draws", every_x, every_t, {"color": BOUNDARY, "width": 0.7}),
        ("transition, median", x, middle, {"color": INK, "width": 2}),
        ("5 and 95 %", both_x, both_t, {"color": INK, "width": 1, "dash": "dash"}),
    ):
        if np.isfinite(t).any():
            opacity = 0.35 if name == "single draws" else 1.0
            figure.add_scatter(x=_gaps(at), y=_gaps(t), mode="lines", line=line, opacity=opacity, name=name, hoverinfo="skip")


def _gaps(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(v) else float(f"{v:.5g}") for v in values]


def _marks(figure: Any, d: xr.Dataset) -> None:
    """Cells that are not to be relied on."""
    for name, where, symbol, size in (
        (f"frozen for > {1 - SUPPORTED:.0%}".replace("%", " %"), d["supported"] < SUPPORTED, "line-ne-open", 8),
        ("not in equilibrium", d["hysteresis"] > _UNSETTLED, "circle", 4),
    ):
        rows, columns = np.nonzero(where.to_numpy())
        if len(rows):
            x, t = d[across(d)].to_numpy()[columns], d["temperature"].to_numpy()[rows]
            figure.add_scatter(
                x=x.tolist(), y=t.tolist(), mode="markers", name=name, hoverinfo="skip",
                marker={"symbol": symbol, "size": size, "color": "#555555", "line": {"width": 1, "color": "#555555"}},
            )  # fmt: skip
