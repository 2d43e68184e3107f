"""What can be inferred from: models and images that belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..hamiltonian import Hamiltonian
from ..observation import Observation
from .parameters import noisy

KINDS = ("calibrated", "independent")  # likelihoods that every image has


def check_inputs(models: Sequence[Hamiltonian], observations: Sequence[Observation], kinds: Sequence[str] = KINDS) -> None:
    """Refuse what cannot be inferred from: nothing to infer, names twice, lattices or species that differ (InputError)."""
    for o in observations if "exact" in kinds else ():
        if o.configuration is None or not o.window.whole or noisy(o) or o.probabilities is not None:
            raise InputError(
                f"{o.name} is no whole periodic crystal without label errors: its exact likelihood is unknown; use the calibrated one"
            )
    if not models or not observations:
        raise InputError(f"{len(models)} models and {len(observations)} observations given; expected at least one of each")
    if not any(m.terms for m in models):
        raise InputError(f"model {', '.join(m.name for m in models)} has no couplings: there is nothing to infer; add a model with a term")
    for kind, names in (("models", [m.name for m in models]), ("observations", [o.name for o in observations])):
        if len(set(names)) != len(names):
            raise InputError(f"two {kind} are called {max(names, key=names.count)!r}; give each a name of its own")
    for name in [*(m.name for m in models), *(o.name for o in observations)]:
        if not name.strip() or set(name) & set('/\\:*?"<>|') or name.startswith("."):
            raise InputError(f"name {name!r} cannot be a file's name; use letters, digits, spaces, - or _")
    first = observations[0].environments
    for o in observations:
        if o.environments.key != first.key or o.environments.species != first.species:
            raise InputError(f"{o.name} is counted by {o.environments!r}, {observations[0].name} by {first!r}; expected the same for all")
        if np.count_nonzero(o.true_composition > 0) < 2:
            raise InputError(
                f"{o.name} shows one species only; a fixed composition without a partner says nothing about couplings: leave it out"
            )
    for m in models:
        if m.lattice != first.lattice or m.species != first.species:
            raise InputError(
                f"model {m.name} is on {m.lattice!r} with {'/'.join(m.species)}; "
                f"the images are on {first.lattice!r} with {'/'.join(first.species)}"
            )
