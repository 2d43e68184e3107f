"""Watching: a folder in which images arrive, a session that takes them, and a picture that is up to date.

The results folder holds the session (see :mod:`bayesatoms.inference.kept`), live.png and live.json. Run into again, it goes
on: images that were taken are there, files that were set aside are looked at again only once they have changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BayesAtomsError, InputError, RunError
from .files import write
from .observation import Observation
from .readings import finite
from .study import TABLES, NuisancesSection, Study

if TYPE_CHECKING:
    from .inference.sequential import Sequential
    from .inference.stopping import StopRule
    from .inference.updates import Update
    from .montecarlo.executors import Executor
    from .progress import Progress

PICTURE, STATE = "live.png", "live.json"
_TAKEN, _AGAIN, _ASIDE = "taken", "the same again", "set aside"

Say = Callable[[str], None]


@dataclass(eq=False)
class Arrivals:
    """Files of a folder that are there whole: one that is still being written changes between two looks.

    Parameters
    ----------
    folder : path
    pattern : str
        Of the names; hidden files are never looked at.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     arrivals = Arrivals(Path(folder), "*.csv")
    ...     _ = Path(folder, "a.csv").write_text("x,y")
    ...     first = arrivals.look()
    ...     [path.name for path in first], [path.name for path in arrivals.look()], arrivals.look()
    ([], ['a.csv'], [])
    """

    folder: Path
    pattern: str = "*"
    _seen: dict[Path, tuple[int, int]] = field(default_factory=dict)
    _given: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self) -> list[Path]:
        """Files that are new or have changed, and are as they were at the last look; in the order in which they were written."""
        now = {}
        try:
            for path in self.folder.glob(self.pattern):
                if not path.name.startswith(".") and path.is_file():
                    status = path.stat()
                    now[path] = (status.st_mtime_ns, status.st_size)
        except FileNotFoundError:
            pass  # one was moved away while we looked: the next look is right again
        ready = [p for p, mark in now.items() if self._seen.get(p) == mark and self._given.get(p) != mark]
        self._seen = now
        self._given |= {p: now[p] for p in ready}
        return sorted(ready, key=lambda p: (now[p], p.name))

    @property
    def waiting(self) -> bool:
        """Whether there are files that a further look may give out."""
        return any(self._given.get(p) != mark for p, mark in self._seen.items())


@dataclass(eq=False)
class Watch:
    """A study's session on a watched folder.

    Attributes
    ----------
    session : Sequential
    files : dict
        What became of each file, by its name: status, hash, images, and why it was set aside.
    """

    study: Study
    session: Sequential
    out: Path
    say: Say
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def begin(self) -> Update | None:
        """Go on where an earlier watch stopped, and take the images of the study first."""
        try:
            self.files = json.loads((self.out / STATE).read_text(encoding="utf8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            self.files = {}
        here = {o.name for o in self.session.observations}
        if self.session.updates:
            self.say(f"Going on with {len(here)} image{'s' if len(here) != 1 else ''} taken before.")
        given = self.study.observations if self.study.file.image else ()
        if first := [o for o in given if o.name not in here]:
            self._take(first)
        if self.session.updates:
            self.show()
        return self.session.updates[-1] if self.session.updates else None

    def arrive(self, path: Path) -> Update | None:
        """Take a file: an update, or None if it was seen before or cannot be used, which is said and written down."""
        digest = None
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if self._known(digest, path.name):
                return None
            # its own hash, so that it is known again whatever a reader says of its source
            images = [replace(o, source={**o.source, "watched": digest}) for o in self.study.arrived(path)]
            found = self._take(images)
        except RunError:
            raise
        except Exception as error:  # a session runs for days: no file may end it, whatever a reader makes of it
            why = str(error) if isinstance(error, BayesAtomsError | OSError) else f"{type(error).__name__}: {error}"
            self._write_down(path.name, digest, _ASIDE, why=" ".join(why.split()))
            return None
        self._write_down(path.name, digest, _TAKEN, images=[o.name for o in images])
        return found

    def _take(self, images: list[Observation]) -> Update:
        found = self.session.add(images)
        self.say(str(found))
        return found

    def _known(self, digest: str, name: str) -> bool:
        """Whether these very bytes were taken already, or set aside under this name."""
        images = [o.name for o in self.session.observations if digest in (o.source.get("watched"), o.source.get("sha256"))]
        twin = next((n for n, f in self.files.items() if f["sha256"] == digest and f["status"] == _TAKEN), None)
        if images and twin is None:  # it was stopped before this could be written down
            self._write_down(name, digest, _TAKEN, images=images)
        elif images and twin != name:
            self._write_down(name, digest, _AGAIN, why=f"It is {twin}.")
        before = self.files.get(name, {})
        return bool(images) or (before.get("sha256") == digest and before.get("status") == _ASIDE)

    def _write_down(self, name: str, digest: str | None, status: str, *, why: str = "", images: list[str] | None = None) -> None:
        self.files[name] = {"sha256": digest, "status": status, "why": why, "images": images or []}
        if why:
            self.say(f"{name}: {status}. {why}")
        self.show()

    def show(self) -> None:
        """Write live.png and live.json, each whole or not at all."""
        from .plots.sequential import live
        from .plots.style import save

        session = self.session
        if session.updates:
            save(live(session.updates, session.models, session.stop), self.out / PICTURE, dpi=150)
        last = session.updates[-1] if session.updates else None
        content = {
            "study": self.study.file.study.name,
            "seed": session.seed,
            "images": [o.name for o in session.observations],
            "files": self.files,
            "updates": [u.summary() for u in session.updates],
            "stop": bool(last and last.stop.stop),
            "verdict": last.stop.sentence if last else "no image yet",
        }
        write(self.out / STATE, json.dumps(finite(content), indent=1, sort_keys=True, allow_nan=False))


def watch(
    study: Study,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    stop: StopRule | None = None,
    once: bool = False,
    every: float = 2.0,
    idle: float | None = None,
    workers: int | Executor = 1,
    progress: Progress | None = None,
    say: Say = print,
    pause: Callable[[float], None] = time.sleep,
) -> Sequential:
    """Infer from images as they arrive in a folder, until the stop rule says so.

    Parameters
    ----------
    study : Study
        Its images, if it has any, are taken first; its [watch] says how the files are read.
    out : path
        Results folder, made if need be, continued if it holds a session of this study.
    folder : path, optional
        Where images arrive, instead of the study's.
    stop : StopRule, optional
        By default there is no end.
    once : bool
        Take what is there, and end.
    every : float
        Seconds between two looks.
    idle : float, optional
        Seconds without a new file after which to end.
    workers : int or Executor
    progress : callable(stage, done, total), optional
    say : callable(str)
        Gets what there is to say.
    pause : callable(seconds)

    Returns
    -------
    Sequential

    Raises
    ------
    InputError
        If there is no folder to watch, the study asks for what a session cannot do, or `out` holds another session.

    Examples
    --------
    ``watch(study.read("study.toml"), "results", folder="microscope", stop=StopRule(sd={"P1.w1": 0.03}))``
    """
    from .inference.campaign import Settings
    from .inference.sequential import Sequential

    section, options, out = study.file.watch, study.file.infer, Path(out)
    if folder is None and (section is None or section.folder is None):
        raise InputError("no folder to watch: give --folder, or folder in the [watch] section of the study")
    place = Path(folder) if folder is not None else study.path.parent / str(section.folder if section else "")
    if not place.is_dir():
        raise InputError(f"folder {place} to watch is no folder; expected the one in which images arrive")
    if place.resolve() == out.resolve():
        raise InputError(f"{place} is both watched and written to; choose another --out")
    if options.likelihood != "calibrated" or study.file.nuisances != NuisancesSection():
        raise InputError("images one by one have the calibrated likelihood and no [nuisances]; leave both out, or use run on all images")
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if getattr(options, f.name, None) is not None}
    session = Sequential(
        study.models, seed=study.file.study.seed, settings=Settings(**given), stop=stop, out=out, workers=workers, progress=progress
    )
    watched = Watch(study, session, out, say)
    arrivals = Arrivals(place, section.pattern if section else "*")
    last, waited = watched.begin(), 0.0
    while last is None or not last.stop.stop:
        for path in arrivals.look():
            waited = 0.0
            if _readable(path, section) and (found := watched.arrive(path)) is not None:
                last = found
                if last.stop.stop:
                    break
        else:
            if once and not arrivals.waiting:
                break
            if idle is not None and waited >= idle:
                say(f"No new file for {waited:g} s.")
                break
            pause(every)
            waited += every
    return session


def _readable(path: Path, section: Any) -> bool:
    """Whether a file is one of those that this watch is about: without a brightest species only tables are."""
    if path.suffix.lower() in TABLES:
        return True
    if section is None or section.bright is None:
        return False
    from .imaging.formats import SUFFIXES

    return path.suffix.lower() in SUFFIXES
