"""Figures of images, posteriors, comparisons and phase maps.

Every function takes results or arrays, draws with matplotlib's object interface (no pyplot, no
window, nothing global) and returns the `Figure`; :func:`save` writes it, :func:`to_svg` and
:func:`to_png` turn it into text for a web page.

What to draw when: :func:`reading` for whether an image was read rightly, or its parts :func:`overlay`,
:func:`intensities`, :func:`certainty`, :func:`background`, :func:`strain`; :func:`site_map` for the data;
:func:`histogram` for how well each model reproduces them; :func:`posteriors` and :func:`corner` for the
couplings; :func:`s2_landscape` for the published fit; :func:`weights` for which model;
:func:`label_shift` for what another labelling of the same images changes; :func:`phase_map` for what follows elsewhere, with
:func:`order_against_temperature` at one composition, :func:`transition_temperatures`, :func:`coexistence`, :func:`loops`,
:func:`model_disagreement` and, as atoms, :func:`snapshots`;
:func:`gain_map_figure` for what to image next, :func:`learning_curve` and :func:`power_curve` for how many images of it,
:func:`live` while they come in;
:func:`rank_bands` for whether the posteriors can be trusted.
"""

from .boundaries import coexistence, loops, order_against_temperature, transition_temperatures
from .calibration import rank_bands
from .couplings import corner, label_shift, posteriors
from .fits import histogram, predicted_counts, s2_landscape, weights
from .gain import gain_map_figure
from .micrographs import background, certainty, intensities, overlay, reading, strain
from .phases import model_disagreement, phase_map
from .planning import learning_curve, power_curve
from .predicted import snapshots
from .sequential import live
from .structure import environment_key, site_map
from .style import model_colours, save, signed, to_png, to_svg

__all__ = [
    "background",
    "certainty",
    "coexistence",
    "corner",
    "environment_key",
    "gain_map_figure",
    "histogram",
    "intensities",
    "label_shift",
    "learning_curve",
    "live",
    "loops",
    "model_colours",
    "model_disagreement",
    "order_against_temperature",
    "overlay",
    "phase_map",
    "posteriors",
    "power_curve",
    "predicted_counts",
    "rank_bands",
    "reading",
    "s2_landscape",
    "save",
    "signed",
    "site_map",
    "snapshots",
    "strain",
    "to_png",
    "to_svg",
    "transition_temperatures",
    "weights",
]
