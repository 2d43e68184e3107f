"""Tables of positions, as this program and others write them: CSV, xyz, atomap's HDF5, AtomAI's arrays.

Use :func:`read_table`; every column keeps its name and its values, positions are called x and y where the format says which they are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


@dataclass(frozen=True, eq=False)
class Table:
    """A table of positions.

    Parameters
    ----------
    file : str
    sha256 : str
        Hash of the file's bytes.
    columns : mapping of str to list of str or ndarray
        All of one length: text as the file has it, or numbers.
    unit : str, optional
        Of x and y, where the format says it: "px" or "Å".
    header : mapping
        What the file says about the whole: cell, pixel size, comment.
    """

    file: str
    sha256: str
    columns: Mapping[str, list[str] | NDArray]
    unit: str | None = None
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def records(self) -> list[dict[str, str]]:
        """The rows as dictionaries of text, as csv.DictReader gives them.

        Examples
        --------
        >>> Table("a.xyz", "", {"species": ["W"], "x": np.array([0.5])}).records()
        [{'species': 'W', 'x': '0.5'}]
        """
        columns = [values if isinstance(values, list) else list(map(str, values.tolist())) for values in self.columns.values()]
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def read_table(path: str | Path) -> Table:
    """Read a table of positions.

    The suffix says the format; in a file of several frames the column `frame` tells them apart.

    =============  =============================================================================================
    .xyz, .extxyz  plain (`El x y z`) or extended (`Properties=`, `Lattice=`); Å; columns species, x, y, z, ...
    .h5, .hdf5     atomap's `save_atom_lattice_to_hdf5`: x, y in pixels, sigma_x, sigma_y, rotation and the sublattice
    .npy, .npz     AtomAI's coordinates: rows of (row, column, class), one array a frame, so y is the first number;
                   or arrays with names: a structured one, or several of one length
    any other      CSV with a header (.tsv: tabs); the tables that `run` and `observe` write
    =============  =============================================================================================

    Parameters
    ----------
    path : path

    Returns
    -------
    Table

    Raises
    ------
    InputError
        If the file cannot be read, is no such table, or holds no rows.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "flake.xyz")
    ...     _ = file.write_text("2\\n\\nW 0.0 0.0 0.0\\nV 3.16 0.0 0.0\\n")
    ...     table = read_table(file)
    >>> table.rows, table.columns["species"], table.columns["x"].tolist(), table.unit
    (2, ['W', 'V'], [0.0, 3.16], 'Å')
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"table {path} cannot be read ({error.strerror}); expected a CSV file with a header") from None
    columns, unit, header = _READERS.get(path.suffix.lower(), _csv)(path, data)
    table = Table(path.name, hashlib.sha256(data).hexdigest(), columns, unit, header)
    if not columns or not table.rows:
        raise InputError(f"table {path} holds no rows; expected a header and one row a site")
    return table


Parts = tuple[dict[str, "list[str] | NDArray"], str | None, dict[str, Any]]  # columns, unit, header


def _csv(path: Path, data: bytes) -> Parts:
    try:
        lines = data.decode("utf-8-sig").splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"table {path} is no CSV text ({error}); expected a CSV file with a header") from None
    if any(None in r or None in r.values() for r in rows):
        bad = next(i for i, r in enumerate(rows, 2) if None in r or None in r.values())
        raise InputError(f"table {path}: line {bad} has another number of fields than the header")
    return {name: [r[name] for r in rows] for name in (rows[0] if rows else ())}, None, {}


# ---------------------------------------------------------------------- xyz


def _xyz(path: Path, data: bytes) -> Parts:
    frames = list(_frames(path, data))
    columns: dict[str, list[str]] = {}
    for k, (comment, rows, first) in enumerate(frames):
        names, types = _properties(path, comment, rows)
        short = next((i for i, r in enumerate(rows) if len(r) < len(names)), None)
        if short is not None:
            raise InputError(f"table {path}: line {first + short} has {len(rows[short])} fields; expected {len(names)}: {' '.join(names)}")
        if columns and set(columns) - {"frame"} != set(names):
            raise InputError(f"table {path}: frame {k} has the columns {' '.join(names)}; expected those of the first frame")
        for c, name in enumerate(names):
            columns.setdefault(name, []).extend(r[c] for r in rows)
        if len(frames) > 1:
            columns.setdefault("frame", []).extend([str(k)] * len(rows))
    for name, kind in zip(names, types, strict=True):
        if kind == "R":
            columns[name] = _floats(path, name, columns[name])
    pairs = re.findall(r"(\w+)=(?:\"([^\"]*)\"|'([^']*)'|\{([^}]*)\}|(\S+))", frames[0][0])
    header = {key: "".join(values) for key, *values in pairs if key != "Properties"} or {"comment": frames[0][0].strip()}
    return columns, "Å", header


def _frames(path: Path, data: bytes) -> Iterator[tuple[str, list[list[str]], int]]:
    """Comment, rows and the line of the first row of each frame."""
    try:
        lines = data.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"table {path} is no text ({error}); expected an xyz file") from None
    at = 0
    while at < len(lines):
        count = lines[at].strip()
        if not count.isdigit():
            raise InputError(f"table {path}: line {at + 1} is {count[:40]!r}; expected the number of atoms of an xyz file")
        rows = [line.split() for line in lines[at + 2 : at + 2 + int(count)]]
        if len(rows) < int(count):
            raise InputError(f"table {path}: {len(rows)} atoms; line {at + 1} promises {count}: the file is truncated")
        yield lines[at + 1], rows, at + 3
        at += 2 + int(count)
    if not at:
        raise InputError(f"table {path} is empty; expected an xyz file")


def _properties(path: Path, comment: str, rows: list[list[str]]) -> tuple[list[str], list[str]]:
    """Names and types (S, I, R, L) of the columns."""
    found = re.search(r"\bProperties=\"?([^\s\"]+)", comment, flags=re.IGNORECASE)
    if not found:
        further = max(map(len, rows), default=4) - 4
        return ["species", "x", "y", "z", *(f"column{n + 5}" for n in range(further))], ["S", "R", "R", "R"] + ["S"] * further
    parts = found[1].split(":")
    names, types = [], []
    if len(parts) % 3 or not all(n.isdigit() for n in parts[2::3]):
        raise InputError(f"table {path}: Properties={found[1]}; expected name:type:columns, as in species:S:1:pos:R:3")
    for name, kind, n in zip(parts[::3], parts[1::3], map(int, parts[2::3]), strict=True):
        plain = list("xyz") if name == "pos" and n == 3 else [name] if n == 1 else [f"{name}_{k}" for k in range(n)]
        names += ["species" if p in ("element", "symbols") else p for p in plain]
        types += [kind.upper()] * n
    if not {"x", "y"} <= set(names):
        raise InputError(f"table {path}: Properties={found[1]} has no positions; expected pos:R:3 among them")
    return names, types


def _floats(path: Path, name: str, values: list[str]) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=float)
    except ValueError as error:
        raise InputError(f"table {path}: column {name!r} holds something that is no number ({error})") from None


# ---------------------------------------------------------------------- atomap


def _atomap(path: Path, data: bytes) -> Parts:
    """Groups named `..._sublattice` with positions (x, y) in pixels and, of one length with them, sigma_x, sigma_y and rotation."""
    import h5py

    names, parts, header = [], [], {}
    try:
        with h5py.File(io.BytesIO(data)) as file:
            groups = [g for g in file.values() if isinstance(g, h5py.Group) and "atom_positions" in g]
            for group in sorted(groups, key=lambda g: int(g.attrs.get("sublattice_index", 0))):
                title = group.attrs.get("name", group.attrs.get("tag", b""))
                title = (title.decode() if isinstance(title, bytes) else str(title)) or group.name.strip("/").removesuffix("_sublattice")
                x, y = np.asarray(group["atom_positions"], dtype=float).T
                widths = {k: np.asarray(group[k], dtype=float) for k in ("sigma_x", "sigma_y", "rotation") if k in group}
                names += [title] * len(x)
                parts.append({"x": x, "y": y, **{k: v for k, v in widths.items() if v.shape == x.shape}})
                header[f"pixel_size {title}".strip()] = float(group.attrs.get("pixel_size", np.nan))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"table {path} cannot be read as HDF5 ({error}); is the file whole?") from None
    if not parts:
        raise InputError(f"table {path} has no group with atom_positions; expected a file of atomap's save_atom_lattice_to_hdf5")
    columns = {k: np.concatenate([p.get(k, np.full(len(p["x"]), np.nan)) for p in parts]) for k in parts[0]}
    return {**columns, "sublattice": names}, "px", header


# ---------------------------------------------------------------------- AtomAI and other arrays


def _arrays(path: Path, data: bytes) -> Parts:
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = {k: loaded[k] for k in loaded.files} if hasattr(loaded, "files") else {"0": loaded}
    except Exception as error:  # numpy raises anything on a broken file
        hint = "a dictionary of frames is saved by np.savez(path, **{str(k): v for k, v in coordinates.items()})"
        raise InputError(f"table {path} cannot be read as plain NumPy arrays ({error}); {hint}") from None
    single = next(iter(arrays.values())) if len(arrays) == 1 else None
    if single is not None and single.dtype.names:
        arrays = {k: single[k] for k in single.dtype.names}
    if arrays and all(a.ndim == 1 for a in arrays.values()) and len({len(a) for a in arrays.values()}) == 1:
        return {k: list(map(str, a)) if a.dtype.kind in "US" else a for k, a in arrays.items()}, None, {}
    wrong = {k: a.shape for k, a in arrays.items() if a.ndim != 2 or a.shape[1] not in (2, 3) or a.dtype.kind not in "fiu"}
    if wrong or not arrays:
        raise InputError(
            f"table {path}: arrays of shape {wrong or 'none'}; expected AtomAI's (n, 3): row, column, class - or named columns"
        )
    frames = [str(k) for k, a in arrays.items() for _ in a]
    # AtomAI takes centres of mass of an array, so the first number is the row
    columns: dict[str, list[str] | NDArray] = {n: np.concatenate([a[:, c] for a in arrays.values()]) for n, c in (("x", 1), ("y", 0))}
    if all(a.shape[1] == 3 for a in arrays.values()):
        columns["class"] = [f"{c:g}" for a in arrays.values() for c in a[:, 2]]
    return {**columns, **({"frame": frames} if len(arrays) > 1 else {})}, "px", {}


_READERS = {
    **dict.fromkeys((".xyz", ".extxyz"), _xyz),
    **dict.fromkeys((".h5", ".hdf5"), _atomap),
    **dict.fromkeys((".npy", ".npz"), _arrays),
}
