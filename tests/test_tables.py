"""Tables of labelled sites from real images: indexed, counted, inferred."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation
from bayesatoms.results import sites_table

METAL = Lattice.triangular(0.316)
CAREFUL = {"x": "x_px", "y": "y_px", "species": "species_own"}
AUTHORS = {"x": "author_x_px", "y": "author_y_px", "species": "species_author"}


@pytest.mark.parametrize("name", ["re05", "re78"])
def test_authors_labels_give_the_authors_histogram(data, name):
    o = Observation.from_table(data / "mores2" / f"{name}_sites.csv", METAL, ("Mo", "Re"), columns=AUTHORS)
    with (data / "mores2" / "author_hist26.csv").open() as file:
        published = np.array([int(row[name]) for row in csv.DictReader(file)])
    assert np.abs(o.counts - published).sum() <= 0.02 * published.sum()


def test_careful_labels_differ_where_it_is_known(data):
    """35 of 520 columns of re78 are mislabelled by the global threshold; the distorted lattice is indexed whole."""
    path = data / "mores2" / "re78_sites.csv"
    careful, authors = (Observation.from_table(path, METAL, ("Mo", "Re"), columns=c) for c in (CAREFUL, AUTHORS))
    assert careful.configuration.composition[1] == pytest.approx(0.768, abs=0.01)
    assert authors.configuration.composition[1] == pytest.approx(0.832, abs=0.01)
    assert careful.source["sites_indexed"] >= 0.99 * careful.source["rows"]
    assert careful.n >= 0.8 * careful.source["rows"]


def test_one_sublattice_of_a_table(data):
    path, columns = data / "v_wse2" / "v_wse2_sites.csv", {"x": "x_px1024", "y": "y_px1024"}
    o = Observation.from_table(path, METAL, ("W", "V"), columns=columns, keep={"species": ["W", "V"]})
    assert (o.source["rows_used"], o.configuration.n_seen, o.n) == (970, 970, 846)
    assert o.configuration.composition[1] == pytest.approx(0.067, abs=5e-4)
    with pytest.raises(InputError, match="column 'species' holds Se2, Se2Vac, SeVac; expected W, V; choose rows with keep"):
        Observation.from_table(path, METAL, ("W", "V"), columns=columns)


def test_the_exported_table_is_a_valid_input(data, tmp_path):
    first = Observation.from_table(data / "mores2" / "re05_sites.csv", METAL, ("Mo", "Re"), columns=CAREFUL)
    path = tmp_path / "re05.csv"
    path.write_text(sites_table(first))
    again = Observation.from_table(path, METAL, ("Mo", "Re"))
    assert np.array_equal(again.counts, first.counts)
