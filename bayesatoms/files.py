"""Files that appear whole or not at all, and which of those in a folder are ours."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from xarray import Dataset, DataTree


def write(path: Path, content: str | bytes) -> Path:
    """Write a file beside its place and move it there: whole or not at all.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.txt"), "one line").read_text()
    'one line'
    """
    data = content.encode() if isinstance(content, str) else content
    return _whole(path, lambda temporary: temporary.write_bytes(data))


def write_dataset(data: Dataset | DataTree, path: str | os.PathLike[str]) -> Path:
    """Write an xarray data set or tree, whole or not at all.

    Examples
    --------
    ``write_dataset(result_tree, "P1.nc")``
    """
    return _whole(Path(path), lambda temporary: data.to_netcdf(temporary, engine="h5netcdf"))


def _whole(path: Path, write_to: Callable[[Path], object]) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_to(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class Ledger:
    """What was written into a folder before: tells our own files from those that somebody made or changed since.

    Parameters
    ----------
    folder : path

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mine, yours = write(Path(folder, "a.csv"), "1"), write(Path(folder, "b.csv"), "2")
    ...     Ledger(folder).close([mine])
    ...     Ledger(folder).stale([]) == [mine], yours.exists()
    (True, True)
    """

    _NAME = "written.json"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.known: dict[str, str] = json.loads((self.folder / self._NAME).read_text(encoding="utf8"))
        except (OSError, ValueError):
            self.known = {}

    def guard(self, path: Path) -> None:
        """Refuse to overwrite a file of ours that was changed by hand.

        Raises
        ------
        InputError
        """
        if self._key(path) in self.known and path.exists() and not self._ours(path):
            raise InputError(f"{path} was changed since it was written and would be lost: move it elsewhere, or choose another --out")

    def stale(self, kept: Iterable[Path]) -> list[Path]:
        """Files of ours, unchanged, that are not among those kept."""
        keep = {self._key(path) for path in kept}
        return [self.folder / name for name in self.known if name not in keep and self._ours(self.folder / name)]

    def close(self, kept: Iterable[Path]) -> None:
        """Write down what the folder now holds of ours."""
        write(self.folder / self._NAME, json.dumps({self._key(p): _digest(p) for p in sorted(kept)}, indent=1))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _ours(self, path: Path) -> bool:
        return path.is_file() and self.known.get(self._key(path)) == _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
