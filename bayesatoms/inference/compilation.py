"""Compiled samplers are kept, in memory and between runs: tracing and compiling NUTS takes far longer than running it.

jax's own cache keeps what the compiler made of a program, but a program must be traced before it is looked up, which for
NUTS takes seconds. Here whole programs are found by what they were made from. They lie in ``$BAYESATOMS_CACHE``
or ``$XDG_CACHE_HOME/bayesatoms`` (``~/.cache/bayesatoms``), one folder for each kind of processor; an empty
BAYESATOMS_CACHE turns that off.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write

_IN_MEMORY, _ON_DISK = 32, 64  # programs kept; one takes some megabytes
_PROGRAMS: dict[str, Callable[..., Any]] = {}
TRACING = threading.RLock()  # numpyro traces one model at a time


def cache_folder() -> Path | None:
    """Where programs compiled for this processor are kept; None where that is turned off or cannot be written to."""
    given = os.environ.get("BAYESATOMS_CACHE")
    if given == "":
        return None
    base = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayesatoms"
    try:  # a program uses all that the processor can do: one home may serve machines of several kinds
        known = Path("/proc/cpuinfo").read_text(encoding="utf8", errors="replace").split("\n\n")[0]
        kind = "".join(line for line in known.splitlines() if line.startswith(("flags", "Features", "model name")))
    except OSError:
        kind = platform.processor()
    folder = base / "jax" / f"{platform.machine()}-{hashlib.blake2b(kind.encode(), digest_size=6).hexdigest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def program(function: Callable[..., Any], *given: Any, made_from: Sequence[str | bytes]) -> Callable[..., Any]:
    """A function compiled for arguments of these shapes: from memory, from the cache folder, or now.

    Parameters
    ----------
    function : callable
        Of jax arrays, not traced where its program is known.
    *given : trees of arrays
        Arguments, for their shapes.
    made_from : sequence of str or bytes
        All that the program depends on beside shapes and the versions of jax and numpyro.

    Examples
    --------
    >>> double = program(lambda x: 2 * x, np.arange(3.0), made_from=["twice"])
    >>> double(np.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """
    key = _key(given, made_from)
    with TRACING:
        if key not in _PROGRAMS:
            folder = cache_folder()
            path = None if folder is None else folder / f"{key}.program"
            found = None if path is None else _read(path)
            if found is None:
                found = _compile(function, given, path)
            while len(_PROGRAMS) >= _IN_MEMORY:
                _PROGRAMS.pop(next(iter(_PROGRAMS)))
            _PROGRAMS[key] = found
        return _PROGRAMS[key]


def _key(given: Any, made_from: Sequence[str | bytes]) -> str:
    import jax
    import jaxlib
    import numpyro

    leaves, tree = jax.tree.flatten(given)
    shapes = [f"{np.shape(x)} {jax.numpy.result_type(x)}" for x in leaves]
    versions = [jax.__version__, jaxlib.__version__, numpyro.__version__, str(jax.config.jax_enable_x64), os.environ.get("XLA_FLAGS", "")]
    versions += [f"{d.platform} {d.device_kind}" for d in jax.local_devices()]
    digest = hashlib.blake2b(digest_size=16)
    for part in (*versions, str(tree), *shapes, *made_from):
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _read(path: Path) -> Callable[..., Any] | None:
    """A program of an earlier run; None where there is none that can be read."""
    import jax
    from jax.experimental.serialize_executable import deserialize_and_load

    try:
        parts = pickle.loads(path.read_bytes())
        jax.numpy.linalg.cholesky(np.eye(1))  # a program calls LAPACK without asking whether it was loaded
        found = deserialize_and_load(*parts)
        path.touch()
    except FileNotFoundError:
        return None
    except Exception as reason:  # whatever is wrong with it, it can be made again
        warnings.warn(f"{path} cannot be used and is made again ({type(reason).__name__}: {reason})", stacklevel=2)
        return None
    return found


def _compile(function: Callable[..., Any], given: Any, path: Path | None) -> Callable[..., Any]:
    import jax
    from jax.experimental.serialize_executable import serialize

    compiled = jax.jit(function).lower(*given).compile()
    if path is not None:
        try:
            write(path, pickle.dumps(serialize(compiled)))
            for old in sorted(path.parent.glob("*.program"), key=lambda p: p.stat().st_mtime)[:-_ON_DISK]:
                old.unlink(missing_ok=True)
        except (OSError, ValueError) as reason:  # a full disk, or a backend that cannot: the program itself is fine
            warnings.warn(f"the compiled program was not kept in {path.parent} ({reason})", stacklevel=2)
    return compiled
