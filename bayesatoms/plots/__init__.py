"""Figures of images, posteriors, comparisons and phase maps.

Every function takes results or arrays, draws with matplotlib's object interface (no pyplot, no
window, nothing global) and returns the `Figure`; :func:`save` writes it, :func:`to_svg` and
:func:`to_png` turn it into text for a web page.

What to draw when: :func:`site_map` for the data; :func:`histogram` for how well each model
reproduces them; :func:`posteriors` and :func:`corner` for the couplings; :func:`s2_landscape` for the
published fit; :func:`weights` for which model; :func:`label_shift` for what another labelling of the
same images changes; :func:`phase_map` for what follows elsewhere.
"""

from .couplings import corner, label_shift, posteriors
from .fits import histogram, predicted_counts, s2_landscape, weights
from .phases import phase_map
from .structure import environment_key, site_map
from .style import model_colours, save, signed, to_png, to_svg

__all__ = [
    "corner",
    "environment_key",
    "histogram",
    "label_shift",
    "model_colours",
    "phase_map",
    "posteriors",
    "predicted_counts",
    "s2_landscape",
    "save",
    "signed",
    "site_map",
    "to_png",
    "to_svg",
    "weights",
]
