"""Compiled samplers are kept between runs: compiling NUTS takes longer than running it.

The cache lies in ``$XDG_CACHE_HOME/bayesatoms`` (``~/.cache/bayesatoms``), one folder for each kind of processor;
JAX_COMPILATION_CACHE_DIR puts it elsewhere, and an empty BAYESATOMS_CACHE turns it off.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

_WORTH = 0.5  # seconds of compilation, from which a program is kept


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


def remember_compilations() -> None:
    """Let JAX keep what it compiles, unless it was already told where."""
    import jax

    if jax.config.jax_compilation_cache_dir is None and (folder := cache_folder()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH)
