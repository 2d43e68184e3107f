"""Tables of labelled sites: from real images, indexed and counted; and in the formats of other programs."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import generator

from bayesatoms.errors import InputError
from bayesatoms.lattice import Lattice
from bayesatoms.observation import Observation
from bayesatoms.results import sites_table
from bayesatoms.tables import read_table

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


# ---------------------------------------------------------------------- formats of other programs

SPECIES = ("W", "V")
LABELS = generator("flake").integers(0, 2, (9, 8))
XY = np.indices(LABELS.shape).reshape(2, -1).T @ METAL.cell * 10  # Å
NAMES = [SPECIES[k] for k in LABELS.ravel()]
TRUTH = Observation.from_labels(LABELS, METAL, SPECIES)


def plain_xyz(path: Path) -> None:
    rows = [f"{s} {x:.6f} {y:.6f} 0.0 {k}" for k, (s, (x, y)) in enumerate(zip(NAMES, XY, strict=True))]
    path.write_text("\n".join([str(len(rows)), "a flake", *rows, ""]))


def extended_xyz(path: Path) -> None:
    """As ASE writes it, with a second frame of one atom."""
    head = 'Lattice="30.0 0.0 0.0 0.0 30.0 0.0 0.0 0.0 9.0" Properties=species:S:1:pos:R:3:forces:R:3:layer:I:1 pbc="T T F"'
    rows = [f"{s} {x:.6f} {y:.6f} 0.0 0.1 0.2 0.3 1" for s, (x, y) in zip(NAMES, XY, strict=True)]
    path.write_text("\n".join([str(len(rows)), head, *rows, "1", head, rows[0], ""]))


def atomap(path: Path) -> None:
    """The groups, data sets and attributes that atomap 0.4 writes; two sublattices, in the wrong order of names."""
    with h5py.File(path, "w") as file:
        file["image_data"] = np.zeros((32, 32))
        for index, name in ((1, "V"), (0, "W")):
            group = file.create_group(f"{name}_sublattice")
            xy = XY[np.array(NAMES) == name] * 10
            group["atom_positions"], group["modified_image_data"] = xy, np.zeros((32, 32))
            for key in ("sigma_x", "sigma_y", "rotation"):
                group[key] = np.full(len(xy), 1.5 + index)
            group.attrs.update({"name": name, "pixel_size": 0.0316, "sublattice_index": index, "plot_color": "red"})


def atomai(path: Path) -> None:
    """Coordinates of two frames: row, column, class."""
    array = np.column_stack([XY[:, 1], XY[:, 0], LABELS.ravel()])
    np.savez(path, **{"0": array, "1": array[:1]})


def same_atoms(o: Observation) -> None:
    """The labels lie where they did."""
    assert o.configuration.n_seen == 72
    assert np.array_equal(o.counts, TRUTH.counts)


def test_plain_xyz(tmp_path):
    plain_xyz(tmp_path / "a.xyz")
    table = read_table(tmp_path / "a.xyz")
    assert list(table.columns) == ["species", "x", "y", "z", "column5"] and table.columns["species"] == NAMES
    assert np.allclose(np.column_stack([table.columns["x"], table.columns["y"]]), XY, atol=1e-6)
    assert (table.rows, table.unit, table.header, table.file) == (72, "Å", {"comment": "a flake"}, "a.xyz")
    assert table.sha256 == hashlib.sha256((tmp_path / "a.xyz").read_bytes()).hexdigest()
    assert table.records()[1]["column5"] == "1"
    same_atoms(Observation.from_table(tmp_path / "a.xyz", METAL, SPECIES))


def test_extended_xyz(tmp_path):
    extended_xyz(tmp_path / "a.extxyz")
    table = read_table(tmp_path / "a.extxyz")
    assert list(table.columns) == ["species", "x", "y", "z", "forces_0", "forces_1", "forces_2", "layer", "frame"]
    assert table.columns["frame"] == ["0"] * 72 + ["1"] and (table.columns["forces_1"] == 0.2).all()
    assert table.header == {"Lattice": "30.0 0.0 0.0 0.0 30.0 0.0 0.0 0.0 9.0", "pbc": "T T F"}
    same_atoms(Observation.from_table(tmp_path / "a.extxyz", METAL, SPECIES, keep={"frame": ["0"]}))


def test_xyz_as_ase_writes_it(tmp_path):
    ase = pytest.importorskip("ase", reason="the crystal extra is not installed")
    io = pytest.importorskip("ase.io")
    atoms = ase.Atoms(NAMES, np.column_stack([XY, np.zeros(72)]), cell=[30, 30, 9])
    for form, suffix in (("xyz", "xyz"), ("extxyz", "extxyz")):
        io.write(tmp_path / f"a.{suffix}", atoms, format=form)
        same_atoms(Observation.from_table(tmp_path / f"a.{suffix}", METAL, SPECIES))


def test_atomap(tmp_path):
    atomap(tmp_path / "a.hdf5")
    table = read_table(tmp_path / "a.hdf5")
    assert list(table.columns) == ["x", "y", "sigma_x", "sigma_y", "rotation", "sublattice"]
    assert table.columns["sublattice"] == sorted(NAMES, reverse=True) and (table.unit, table.rows) == ("px", 72)
    assert table.header == {"pixel_size W": 0.0316, "pixel_size V": 0.0316}
    assert table.columns["sigma_x"].tolist() == [1.5] * NAMES.count("W") + [2.5] * NAMES.count("V")
    same_atoms(Observation.from_table(tmp_path / "a.hdf5", METAL, SPECIES, columns={"species": "sublattice"}))


def test_atomai_puts_rows_before_columns(tmp_path):
    atomai(tmp_path / "a.npz")
    table = read_table(tmp_path / "a.npz")
    assert list(table.columns) == ["x", "y", "class", "frame"] and table.columns["frame"] == ["0"] * 72 + ["1"]
    assert np.array_equal(np.column_stack([table.columns["x"], table.columns["y"]])[:72], XY)
    o = Observation.from_table(tmp_path / "a.npz", METAL, ("0", "1"), columns={"species": "class"}, keep={"frame": ["0"]})
    assert np.array_equal(o.counts, TRUTH.counts)
    np.save(tmp_path / "a.npy", np.column_stack([XY[:, 1], XY[:, 0]]))
    assert list(read_table(tmp_path / "a.npy").columns) == ["x", "y"]


def test_arrays_with_names(tmp_path):
    np.savez(tmp_path / "a.npz", x=XY[:, 0], y=XY[:, 1], species=np.array(NAMES))
    same_atoms(Observation.from_table(tmp_path / "a.npz", METAL, SPECIES))
    rows = [(x, y, s) for (x, y), s in zip(XY, NAMES, strict=True)]
    np.save(tmp_path / "a.npy", np.array(rows, dtype=[("x", "f8"), ("y", "f8"), ("species", "U2")]))
    same_atoms(Observation.from_table(tmp_path / "a.npy", METAL, SPECIES))


def test_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text("\n".join(["x\ty\tspecies", *(f"{x}\t{y}\t{s}" for (x, y), s in zip(XY, NAMES, strict=True))]))
    same_atoms(Observation.from_table(tmp_path / "a.tsv", METAL, SPECIES))


BROKEN = {
    "a.csv": (b"x,y\n1,2\n1,2,3\n", "line 3 has another number of fields than the header"),
    "b.csv": (b"x,y,species\n", "holds no rows; expected a header and one row a site"),
    "c.csv": (b"\xff\xfe\x00", "is no CSV text"),
    "d.csv": (b"", "holds no rows"),
    "a.xyz": (b"3\n\nW 0 0 0\n", "1 atoms; line 1 promises 3: the file is truncated"),
    "b.xyz": (b"W 0 0 0\n", "line 1 is 'W 0 0 0'; expected the number of atoms of an xyz file"),
    "c.xyz": (b"2\n\nW 0 0 0\nW 0 0\n", "line 4 has 3 fields; expected 4: species x y z"),
    "d.xyz": (b"1\n\nW 0 one 0\n", "column 'y' holds something that is no number"),
    "e.xyz": (b"1\nProperties=species:S:1:pos:R\nW 0 0 0\n", "Properties=species:S:1:pos:R; expected name:type:columns"),
    "f.xyz": (b"1\nProperties=species:S:1:mass:R:1\nW 0\n", "has no positions; expected pos:R:3"),
    "g.xyz": (b"", "is empty; expected an xyz file"),
    "h.xyz": (b"1\n\nW 0 0 0\n1\n\nW 0 0 0 5\n", "frame 1 has the columns species x y z column5; expected those of the first frame"),
    "a.h5": (b"no hdf5", "cannot be read as HDF5"),
    "a.npy": (b"no numpy", r"cannot be read as plain NumPy arrays .*np.savez\(path, \*\*"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_are_refused(name, tmp_path):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"table .*{name}.*{message}"):
        read_table(tmp_path / name)


def test_files_without_positions_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"table .*none.xyz cannot be read \(No such file"):
        read_table(tmp_path / "none.xyz")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.zeros((8, 8))
    with pytest.raises(InputError, match="no group with atom_positions; expected a file of atomap's"):
        read_table(tmp_path / "a.h5")
    np.save(tmp_path / "a.npy", np.zeros((5, 4)))
    with pytest.raises(InputError, match=r"arrays of shape {'0': \(5, 4\)}; expected AtomAI's \(n, 3\): row, column, class"):
        read_table(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", {0: np.zeros((5, 3))}, allow_pickle=True)
    with pytest.raises(InputError, match=r"a dictionary of frames is saved by np.savez"):
        read_table(tmp_path / "b.npy")
    atomap(tmp_path / "c.h5")
    with pytest.raises(InputError, match="column 'species' not found; the table has x, y, sigma_x"):
        Observation.from_table(tmp_path / "c.h5", METAL, SPECIES)
