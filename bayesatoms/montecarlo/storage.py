"""Storage of chains: in memory, or in a folder of append-only files with an sqlite catalogue.

Every run appends the chains it finishes to a file of its own, each as a record that says which chain it is and
carries a checksum. The records are the truth, the catalogue is their index, and anybody's to query. Its rows follow in
batches, since each transaction waits for the disk; where it lags behind (a run was killed) or is damaged, it is
made good from the records. So a run killed at any moment loses what was in flight and nothing else, and a record spoilt
later counts as absent. Two runs may share a folder: at worst they simulate a chain twice, with the same result.
A file a chain, instead, would cost ten times the time, and a large campaign more files than many clusters allow.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import sqlite3
import struct
import time
import warnings
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, RunError
from .chains import Chain

_ROWS, _SECONDS = 256, 1.0  # rows, or time, after which the catalogue is brought up to date
_TABLE = (
    "CREATE TABLE IF NOT EXISTS chains (key TEXT PRIMARY KEY, couplings TEXT, counts TEXT, samples INT, sweeps REAL, burn REAL, "
    "moves INT, finished REAL, file TEXT, place INT, length INT)"
)
_MAGIC = b"bayesatoms chain"
_HEAD = struct.Struct("<16sIIQ")  # magic, checksum of the rest, lengths of the description and of the arrays
_DAMAGED = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # the first: another program's tables
_HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
_ROOM = "make room on the disk, or move the folder to where there is some"


class Recipe(Protocol):
    """What a storage must know of a chain."""

    @property
    def key(self) -> str:
        """Hash of everything that the chain follows from."""

    @property
    def couplings(self) -> NDArray[np.float64]:
        """kT."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Atoms of each species at the start."""

    @property
    def samples(self) -> int:
        """Snapshots."""

    @property
    def sweeps(self) -> float:
        """Between snapshots."""

    @property
    def burn(self) -> float:
        """Sweeps before the first."""


class Storage(Protocol):
    """Chains by their keys; its length is their number."""

    def has(self, key: str) -> bool:
        """Whether the chain seems to be there; only :meth:`get` tells for sure."""

    def get(self, key: str) -> Chain | None:
        """The chain, or None where there is none, or a damaged one: then it is simulated again."""

    def put(self, recipe: Recipe, chain: Chain) -> None:
        """Keep a chain."""

    def flush(self) -> None:
        """Bring the catalogue up to date."""

    def __len__(self) -> int: ...


class Memory:
    """Chains kept as long as the object lives.

    Examples
    --------
    >>> storage = Memory()
    >>> len(storage), storage.get("some key")
    (0, None)
    """

    def __init__(self) -> None:
        self._chains: dict[str, Chain] = {}

    def has(self, key: str) -> bool:
        return key in self._chains

    def get(self, key: str) -> Chain | None:
        return self._chains.get(key)

    def put(self, recipe: Recipe, chain: Chain) -> None:
        self._chains[recipe.key] = chain

    def flush(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self._chains)


class Folder:
    """Chains in the files of FOLDER/chains, catalogued in FOLDER/catalogue.sqlite; none of them is held in memory.

    Parameters
    ----------
    path : path
        Made if need be.

    Raises
    ------
    InputError
        If the folder cannot be made, or the catalogue not be opened.
    RunError
        If the disk is full, or another process holds the catalogue for over a minute; also from the methods.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     storage = Folder(folder)
    ...     len(storage), storage.has("some key"), sorted(p.name for p in Path(folder).iterdir())
    (0, False, ['catalogue.sqlite', 'chains'])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.catalogue, self.chains = self.path / "catalogue.sqlite", self.path / "chains"
        self._rows: dict[str, tuple[Any, ...]] = {}  # those that the catalogue has not yet
        self._flushed = time.monotonic()
        self._file = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.chains"  # of this object alone
        self._connection: sqlite3.Connection | None = None
        try:
            self.chains.mkdir(parents=True, exist_ok=True)
            self._reconcile()
        except OSError as error:
            raise InputError(f"pool folder {self.path} cannot be used ({error.strerror}); expected a folder one may write to") from None

    def has(self, key: str) -> bool:
        return self._where(key) is not None

    def get(self, key: str) -> Chain | None:
        if (where := self._where(key)) is None:
            return None
        name, place, length = where
        try:
            with (self.chains / name).open("rb", buffering=0) as file:
                file.seek(place)
                about, arrays = _parse(file.read(length))
            return _chain(about, arrays) if about["key"] == key else None
        except (OSError, _Damage):
            return None

    def put(self, recipe: Recipe, chain: Chain) -> None:
        about, record = _record(recipe, chain)
        try:
            with (self.chains / self._file).open("ab", buffering=0) as file:
                place, rest = file.tell(), memoryview(record)
                try:
                    while rest:
                        rest = rest[file.write(rest) :]
                except BaseException:
                    file.truncate(place)  # nothing half-written
                    raise
        except OSError as error:
            raise self._failed(f"chain {recipe.key} cannot be written ({error.strerror})") from None
        self._rows[recipe.key] = _row(about, self._file, place, len(record))
        if len(self._rows) >= _ROWS or time.monotonic() > self._flushed + _SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._execute("INSERT OR REPLACE INTO chains VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(self._rows.values()))
        self._rows, self._flushed = {}, time.monotonic()

    def __len__(self) -> int:
        self.flush()
        return self._execute("SELECT COUNT(*) FROM chains")[0][0]

    def _where(self, key: str) -> tuple[str, int, int] | None:
        """File, place and length of a record."""
        if key in self._rows:
            return self._rows[key][-3:]
        found = self._execute("SELECT file, place, length FROM chains WHERE key = ?", [(key,)])
        return found[0] if found else None

    def _reconcile(self) -> None:
        """Make the catalogue say what the files hold."""
        known = dict(self._execute("SELECT file, MAX(place + length) FROM chains GROUP BY file"))  # first: others may be adding
        names = sorted(p.name for p in self.chains.glob("*.chains"))
        for name in names:
            self._rows |= {row[0]: row for row in _scan(self.chains / name, known.get(name, 0))}
        if gone := set(known) - set(names):
            self._execute("DELETE FROM chains WHERE file = ?", [(name,) for name in gone])
        self.flush()

    def _execute(self, statement: str, rows: Sequence[tuple[Any, ...]] = ((),)) -> list[tuple[Any, ...]]:
        """Run a statement once for each row of values, in one transaction; what the last one finds."""
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(self.catalogue, timeout=60, check_same_thread=False)
                weakref.finalize(self, self._connection.close)
                self._connection.execute(_TABLE)
            with self._connection:
                if len(rows) == 1:
                    return self._connection.execute(statement, rows[0]).fetchall()
                self._connection.executemany(statement, rows)
                return []
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", -1) & 0xFF  # the low byte: the kind, without the particulars
            if code in _DAMAGED:
                self._set_aside(error)
                self._reconcile()
                return self._execute(statement, rows)
            if code in _HELD | _FULL:
                remedy = _ROOM if code in _FULL else "end the other run that holds it"
                raise self._failed(f"its catalogue cannot be written ({error})", remedy) from None
            raise InputError(
                f"pool catalogue {self.catalogue} cannot be used ({error}); expected an sqlite file that one may write to: "
                "see to its permissions, or move it away, and it is made again from the chains"
            ) from None

    def _set_aside(self, error: sqlite3.Error) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = self.catalogue.with_name("catalogue.damaged.sqlite")
        self.catalogue.with_name("catalogue.sqlite-journal").unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # another run was faster
            self.catalogue.replace(aside)
        message = (
            f"pool catalogue {self.catalogue} is damaged ({error}); it is made again from the chains, the old one kept as {aside.name}"
        )
        warnings.warn(message, stacklevel=2)

    def _failed(self, what: str, remedy: str = _ROOM) -> RunError:
        return RunError(f"pool folder {self.path}: {what}; finished chains are kept: {remedy}, and run again to continue")


class _Damage(Exception):
    """These bytes are no whole record."""


def _record(recipe: Recipe, chain: Chain) -> tuple[dict[str, Any], bytes]:
    """Description of a chain, and that with its arrays as bytes."""
    plain, shapes, arrays = {}, {}, []
    for name in (f.name for f in fields(Chain)):
        value = getattr(chain, name)
        if isinstance(value, np.ndarray):
            shapes[name] = [value.dtype.str, value.shape]
            arrays.append(np.ascontiguousarray(value).tobytes())
        else:
            plain[name] = value
    about = {
        "key": recipe.key, "couplings": recipe.couplings.tolist(), "counts": recipe.counts, "samples": int(recipe.samples),
        "sweeps": float(recipe.sweeps), "burn": float(recipe.burn), "finished": time.time(), "plain": plain, "arrays": shapes,
    }  # fmt: skip
    text, data = json.dumps(about).encode(), b"".join(arrays)
    return about, _HEAD.pack(_MAGIC, zlib.crc32(data, zlib.crc32(text)), len(text), len(data)) + text + data


def _parse(record: bytes | memoryview) -> tuple[dict[str, Any], memoryview]:
    """Description and arrays of the record that begins with these bytes."""
    if len(record) < _HEAD.size:
        raise _Damage
    magic, checksum, n_text, n_data = _HEAD.unpack_from(record)
    rest = memoryview(record)[_HEAD.size : _HEAD.size + n_text + n_data]
    if magic != _MAGIC or len(rest) < n_text + n_data or zlib.crc32(rest) != checksum:
        raise _Damage
    return json.loads(bytes(rest[:n_text])), rest[n_text:]


def _chain(about: dict[str, Any], data: memoryview) -> Chain:
    arrays, place = {}, 0
    for name, (dtype, shape) in about["arrays"].items():
        flat = np.frombuffer(data, dtype, int(np.prod(shape)), place)
        arrays[name], place = flat.reshape(shape).copy(), place + flat.nbytes
    return Chain(**about["plain"], **arrays)


def _scan(path: Path, start: int) -> Iterator[tuple[Any, ...]]:
    """Rows of the catalogue for the whole records of a file from a place on."""
    if path.stat().st_size <= start:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while (start := data.find(_MAGIC, start)) >= 0:
            head = data[start : start + _HEAD.size]
            length = _HEAD.size + (sum(_HEAD.unpack(head)[2:]) if len(head) == _HEAD.size else 0)
            try:
                about, _ = _parse(data[start : start + length])
                yield _row(about, path.name, start, length)
                start += length
            except _Damage:
                start += 1


def _row(about: dict[str, Any], file: str, place: int, length: int) -> tuple[Any, ...]:
    recipe = json.dumps(about["couplings"]), json.dumps(about["counts"]), about["samples"], about["sweeps"], about["burn"]
    return about["key"], *recipe, about["plain"]["moves"], about["finished"], file, place, length
