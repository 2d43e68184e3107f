"""bayesatoms: from atomically resolved images of a disordered material to the interactions that made it.

The names below load on first use: ``import bayesatoms`` itself brings in nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Lattice": "lattice",
    "Environments": "environments",
    "Configuration": "configuration",
    "Hamiltonian": "hamiltonian",
    "Field": "hamiltonian",
    "Pair": "hamiltonian",
    "Cluster": "hamiltonian",
    "Observation": "observation",
    "Image": "imaging.image",
    "read_image": "imaging.read",
    "read_images": "imaging.read",
    "observe": "imaging.micrograph",
    "analyse": "imaging.micrograph",
    "render": "imaging.render",
    "Pool": "montecarlo.pool",
    "executor": "montecarlo.executors",
    "Ladder": "montecarlo.exchange",
    "linked": "montecarlo.exchange",
    "GaussianProcess": "inference.gaussian_process",
    "infer": "inference.posterior",
    "emulate": "inference.posterior",
    "CalibratedDistance": "inference.likelihood",
    "IndependentDistance": "inference.likelihood",
    "ExactLikelihood": "inference.likelihood",
    "Nuisances": "inference.parameters",
    "Sequential": "inference.sequential",
    "StopRule": "inference.stopping",
    "calibrate": "inference.calibration",
    "calibrate_prior": "inference.fresh",
    "label_sensitivity": "inference.sensitivity",
    "compare": "inference.comparison",
    "Candidate": "phases.candidates",
    "PhaseDiagram": "phases.diagram",
    "phase_diagram": "phases.diagram",
    "critical_temperatures": "phases.critical",
    "potential_loop": "phases.hysteresis",
    "measure": "phases.thermodynamics",
    "free_energy_difference": "phases.free_energies",
    "find_phases": "phases.unsupervised",
    "gain_map": "phases.gain",
    "validate": "planning.validate",
    "what_next": "planning.targets",
    "plan": "planning.plan",
    "leave_one_image_out": "inference.left_out",
    "write_report": "reporting.report",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bayesatoms' has no attribute {name!r}")
    value = getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__name__"]
