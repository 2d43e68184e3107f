"""Figures of a plan: what is drawn is what the plan says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_plan import planned

from bayesatoms.errors import InputError
from bayesatoms.planning.prediction import POWER
from bayesatoms.plots import learning_curve, power_curve, to_png


def test_learning_curve():
    p = planned()
    figure = learning_curve(p)
    assert isinstance(figure, Figure)
    ax, law = figure.axes
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_title("left")) == ("log", "log", "P1.w")
    lines = [line.get_xydata() for line in ax.get_lines()]
    so_far = float(p.dataset.past_environments[-1])
    now = float(p.dataset.present_sd[0])
    assert any(np.allclose(xy, [[so_far, now]]) for xy in lines)  # the posterior
    past = np.column_stack([p.dataset.past_environments, p.dataset.past_sd[0]])
    assert any(xy.shape == past.shape and np.allclose(xy, past) for xy in lines)
    for i in range(3):  # each composition begins at the posterior and goes on as predicted
        sd = p.precisions["P1", i].predicted(1).sd[0]
        assert any(len(xy) > 5 and np.allclose(xy[:2], [[so_far, now], [so_far + p.environments, sd]]) for xy in lines)
    assert any(np.allclose(xy[:, 1], 0.02) for xy in lines)  # the target
    text = ax.texts[0].get_text()
    assert text.startswith("large: ")
    assert text.endswith("of the information")
    (curve,) = (line for line in law.get_lines() if line.get_label().startswith("16"))
    assert curve.get_ydata().max() == pytest.approx(1.0)
    assert len(to_png(figure)) > 10_000


def test_power_curve():
    p = planned()
    figure = power_curve(p)
    assert [ax.get_title("left") for ax in figure.axes] == ["R is true", "P1 is true", "average over the truths"]
    ax = figure.axes[0]
    at, d = np.log2(p.dataset.images.to_numpy() + 1), p.dataset.sel(truth="R")
    lines = [line.get_xydata() for line in ax.get_lines()]
    for i in range(3):
        assert any(xy.shape == (11, 2) and np.allclose(xy, np.column_stack([at, d.power[i]])) for xy in lines)
    assert any(np.allclose(xy[:, 1], POWER) for xy in lines)
    assert power_curve(p, ["P1"]).axes[0].get_title("left") == "P1 is true"


def test_what_is_a_guess_is_drawn_broken():
    p = planned()
    guess = dataclasses.replace(p, dataset=p.dataset.assign(settled=("composition", [False, True, True])))
    styles = [line.get_linestyle() for line in power_curve(guess, ["R"]).axes[0].get_lines() if line.get_marker() == "o"]
    assert len(styles) == 3
    assert styles.count("-") == 2
    assert "not in equilibrium" in power_curve(guess, ["R"]).legends[0].get_texts()[0].get_text()


def test_refusals():
    p = planned()
    with pytest.raises(InputError, match=r"expected some of P1\.w"):
        learning_curve(p, ["P9.w"])
    with pytest.raises(InputError, match="expected some of R, P1, average"):
        power_curve(p, ["M"])
    alone = dataclasses.replace(p, dataset=p.dataset.isel(truth=[]))
    with pytest.raises(InputError, match="there is one model only"):
        power_curve(alone)
