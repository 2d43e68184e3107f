"""A rival Monte Carlo package on one workload: PYTHON benchmarks/rivals.py RIVAL WORK TASK.npz

Run by benchmarks/montecarlo.py in the environment of the rival, so it imports nothing of this project. RIVAL and its
environment, each with Python 3.11 and in a virtual environment of its own:

    casm       pip install libcasm-clexmonte==2.4.0 casm-bset==2.2.0; also needs g++ (the energy is compiled at run time)
    mcising    pip install mcising==1.1.0
    icet       pip install icet==4.0; never with the unrelated package mchammer, which overwrites icet's module of that name
    clease     pip install clease==1.2.0
    smol       pip install smol==0.5.7

WORK, with spins s = 2 label - 1, k_B = 1 and every cluster counted once:

    W1    square, E = -sum ss over nearest neighbours, flips of single sites at zero field
    W2    triangular, E = sum ss over nearest - 0.25 sum ss over second neighbours, swaps of unlike pairs
    W3    W2 + J3 sum sss over all 2 N triangles of nearest neighbours; J3 stands in COUPLINGS

TASK holds `labels` (L, L) of the start, along lattice vectors that are 90 or 120 degrees apart, the `temperature`, and
possibly `couplings` (J1, J2, J3) in place of those below. Answers are JSON, one line each: first whether it is ready, the
version and the total energy of the start by the rival's own count, or {"ready": false, "reason": ...}. Then, for each line
`go SECONDS` on standard input, the chain goes on for about so many CPU seconds, and the answer has the moves attempted
(of unlike pairs, where they are swaps) and accepted (null where the rival does not count them), the CPU seconds, and the
energy per site, the mean over that leg. `stop` or the end of the input ends it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"))

import numpy as np

COUPLINGS = {"W1": (-1.0, 0.0, 0.0), "W2": (1.0, -0.25, 0.0), "W3": (1.0, -0.25, 0.15)}  # nearest, second neighbours, triangles
HEIGHT = 10.0  # of the cell, in lattice constants: its images above and below must be out of reach
SPECIES = ("Ag", "Au")  # of label 0, 1
PIECES = 8  # of one leg, each long enough that starting it costs nothing


@dataclass(frozen=True)
class Work:
    """What to simulate: labels (L, L), temperature, couplings (J1, J2, J3), and the lattice with its moves."""

    labels: np.ndarray
    temperature: float
    couplings: tuple[float, float, float]
    triangular: bool
    swaps: bool

    @classmethod
    def load(cls, name: str, task: str) -> Work:
        """From what the parent stored."""
        with np.load(task) as file:
            given = dict(file)
        couplings = tuple(float(j) for j in given.get("couplings", COUPLINGS[name]))
        return cls(given["labels"].astype(int), float(given["temperature"]), couplings, name != "W1", name != "W1")

    @property
    def side(self) -> int:
        """Sites along either edge."""
        return len(self.labels)

    @property
    def sites(self) -> int:
        """Of the whole box."""
        return self.labels.size

    @property
    def cell(self) -> np.ndarray:
        """Rows a1, a2, c."""
        a2 = (-0.5, 0.75**0.5) if self.triangular else (0.0, 1.0)
        return np.array([[1.0, 0.0, 0.0], [*a2, 0.0], [0.0, 0.0, HEIGHT]])

    @property
    def reach(self) -> list[float]:
        """Greatest lengths of pairs and, where there are any, triangles."""
        second = 3**0.5 if self.triangular else 2**0.5
        return [second + 0.05 if self.couplings[1] else 1.05] + ([1.05] if self.couplings[2] else [])

    def coefficients(self, clusters: Iterable[tuple[int, int]]) -> list[float]:
        """Energy per site and unit correlation of clusters (sites, number per lattice site), pairs in order of length.

        The empty cluster and the single site count for nothing.
        """
        first, second, triangle = self.couplings
        left = {2: [first, second] if second else [first], 3: [triangle] if triangle else []}  # as many as are in reach
        found = [left[order].pop(0) * number if order > 1 else 0.0 for order, number in clusters]
        if any(left.values()):
            raise SystemExit(f"no cluster found for the couplings {left}")
        return found

    def at(self, fractional: np.ndarray) -> np.ndarray:
        """Labels of sites with fractional coordinates (n, 2 or 3) in the primitive cell, in whatever order they come."""
        i, j = np.rint(fractional[:, :2]).astype(int).T % self.side
        return self.labels[i, j]


class Leg(NamedTuple):
    """Moves attempted and accepted, if that is counted, and the energy per site."""

    attempted: int
    accepted: int | None
    energy: float


@dataclass(frozen=True)
class Chain:
    """A rival that stands at the start: its version, total energy, what to know of it, and how it goes on by n sweeps."""

    version: str
    energy: float
    note: str
    advance: Callable[[int], Leg]


class UnableError(Exception):
    """The rival does not know this workload, or something is missing that it needs."""


# ------------------------------------------------------------------ rivals


def mcising(work: Work) -> Chain:
    """Rust, single flips in order of the sites."""
    from mcising import IsingSimulation

    if work.swaps or any(work.couplings[1:]):
        raise UnableError("flips single spins only: no swaps, no clusters of three")
    # its energy is -J1 sum ss
    ising = IsingSimulation(work.side, -work.couplings[0], 0.0, 0.0, 0.0, 1, "metropolis", "square")
    ising.set_spins((2 * work.labels - 1).astype(np.int8))

    def advance(sweeps: int) -> Leg:
        # an energy takes no longer than a sweep, so every 100 sweeps it costs nothing
        pieces = np.diff(np.linspace(0, sweeps, min(sweeps, max(1, sweeps // 100)) + 1).astype(int))
        counts, energies = np.zeros(2, int), []
        for piece in pieces:
            counts += ising.sweep(int(piece), temperature=work.temperature)[:2]
            energies.append(ising.energy())
        return Leg(int(counts[1]), int(counts[0]), float(np.mean(energies)))

    return Chain(version("mcising"), ising.energy() * work.sites, "sites in order; energy every 100 sweeps", advance)


def icet(work: Work) -> Chain:
    """Python around an energy change in C++."""
    from ase import Atoms
    from icet import ClusterExpansion, ClusterSpace
    from mchammer.calculators import ClusterExpansionCalculator
    from mchammer.ensembles import CanonicalEnsemble, SemiGrandCanonicalEnsemble

    primitive = Atoms(SPECIES[0], cell=work.cell, pbc=True)
    space = ClusterSpace(primitive, work.reach, list(SPECIES))
    clusters = [(orbit["order"], orbit["multiplicity"]) for orbit in space.as_list]
    expansion = ClusterExpansion(space, work.coefficients(clusters))
    crystal = primitive.repeat((work.side, work.side, 1))
    crystal.symbols = np.array(SPECIES)[work.at(crystal.positions @ np.linalg.inv(work.cell))]
    calculator = ClusterExpansionCalculator(crystal, expansion)
    total = calculator.calculate_total(occupations=list(crystal.numbers))
    common = {
        "structure": crystal, "calculator": calculator, "temperature": work.temperature, "boltzmann_constant": 1.0,
        "ensemble_data_write_interval": work.sites, "trajectory_write_interval": np.inf,
    }  # fmt: skip
    if work.swaps:
        ensemble = CanonicalEnsemble(**common)
    else:
        ensemble = SemiGrandCanonicalEnsemble(**common, chemical_potentials=dict.fromkeys(SPECIES, 0.0))

    def advance(sweeps: int) -> Leg:
        before = len(ensemble.data_container.data)
        ensemble.run(sweeps * work.sites)
        records = ensemble.data_container.data.iloc[max(before, 1) :]  # the first one is of the start
        accepted = round(float(records["acceptance_ratio"].sum()) * work.sites)
        return Leg(sweeps * work.sites, accepted, float(records["potential"].mean()) / work.sites)

    return Chain(version("icet"), float(total), "one record a sweep, no trajectory", advance)


def smol(work: Work) -> Chain:
    """Python around an energy change in Cython."""
    from pymatgen.core import Structure
    from smol.cofe import ClusterExpansion, ClusterSubspace
    from smol.constants import kB
    from smol.moca import Ensemble, Sampler

    primitive = Structure(work.cell, [dict.fromkeys(SPECIES, 0.5)], [[0.0, 0.0, 0.0]])
    cutoffs = dict(zip((2, 3), work.reach, strict=False))
    subspace = ClusterSubspace.from_cutoffs(primitive, cutoffs, basis="sinusoid", supercell_size="volume")
    clusters = [(0, 1), *((len(orbit.base_cluster), orbit.multiplicity) for orbit in subspace.orbits)]
    expansion = ClusterExpansion(subspace, work.coefficients(clusters))
    field = {} if work.swaps else {"chemical_potentials": dict.fromkeys(SPECIES, 0.0)}
    ensemble = Ensemble.from_cluster_expansion(expansion, np.diag([work.side, work.side, 1]), **field)
    sampler = Sampler.from_ensemble(ensemble, temperature=work.temperature / kB)
    processor = ensemble.processor
    labels = work.at(processor.structure.frac_coords * work.side)
    symbols = [str(s.symbol) for s in ensemble.sublattices[0].species]
    codes = np.array([ensemble.sublattices[0].encoding[symbols.index(s)] for s in SPECIES], np.int32)
    state = {"occupancy": codes[labels]}

    def advance(sweeps: int) -> Leg:
        sampler.clear_samples()
        sampler.run(sweeps * work.sites, state["occupancy"], thin_by=work.sites)
        state["occupancy"] = sampler.samples.get_occupancies(flat=False)[-1]
        # thinned samples know of the last move before them only
        return Leg(sweeps * work.sites, None, float(sampler.samples.get_energies().mean()) / work.sites)

    total = float(processor.compute_property(state["occupancy"]))
    return Chain(version("smol"), total, f"{type(processor).__name__}; one sample a sweep; acceptance not counted", advance)


def clease(work: Work) -> Chain:
    """Python around an update of correlations in C++."""
    from ase.units import kB
    from clease.calculator import attach_calculator
    from clease.montecarlo import Montecarlo, RandomFlip, RandomSwap
    from clease.settings import CECrystal, Concentration

    # a cluster's diameter is twice its greatest distance from the centre of mass: 1.155 for a triangle
    pairs, triangles = work.reach[0], [1.2] * (len(work.reach) - 1)
    with tempfile.TemporaryDirectory() as folder:  # for a database that is not used
        settings = CECrystal(
            Concentration([list(SPECIES)]), spacegroup=191 if work.triangular else 123, basis=[(0.0, 0.0, 0.0)],
            cellpar=[1.0, 1.0, HEIGHT, 90, 90, 120 if work.triangular else 90],
            size=[1, 1, 1], db_name=str(Path(folder) / "none.db"), max_cluster_dia=[pairs, *triangles],
        )  # fmt: skip
        crystal = settings.prim_cell.repeat((work.side, work.side, 1))
        names = sorted(name for name in settings.all_cf_names if name[1] in "23")
        numbers = settings.multiplicity_factor  # of figures around a site, by name without decoration
    clusters = [(int(name[1]), round(numbers[name.rsplit("_", 1)[0]] / int(name[1]))) for name in names]
    (basis,) = settings.basis_functions
    sign = basis[SPECIES[1]]  # +-1, of the spin of label 1
    energies = {name: j * sign ** int(name[1]) for name, j in zip(names, work.coefficients(clusters), strict=True)}
    crystal.symbols = np.array(SPECIES)[work.at(crystal.positions @ np.linalg.inv(settings.prim_cell.cell))]
    atoms = attach_calculator(settings, crystal, energies)
    total = atoms.get_potential_energy()
    generator = RandomSwap(atoms) if work.swaps else RandomFlip(list(SPECIES), atoms)
    chain = Montecarlo(atoms, work.temperature / kB, generator)

    def advance(sweeps: int) -> Leg:
        chain.reset_averagers()
        chain.run(sweeps * work.sites)
        return Leg(sweeps * work.sites, chain.num_accepted, float(chain.mean_energy.mean) / work.sites)

    return Chain(version("clease"), float(total), "mean energy over every move", advance)


def casm(work: Work) -> Chain:
    """All C++; the energy is written for the lattice and compiled."""
    import libcasm.configuration
    import libcasm.xtal
    from casm.bset import make_clex_basis_specs, write_clexulator
    from libcasm import casmglobal, clexmonte
    from libcasm.composition import CompositionConverter

    if not shutil.which("g++"):
        raise UnableError("no g++ to compile the energy with")
    # where its headers and libraries are; by default the linker drops the libraries as unused
    os.environ["CASM_PREFIX"] = str(Path(casmglobal.__file__).parents[1])
    os.environ.setdefault("CASM_SOFLAGS", "-shared -Wl,--no-as-needed")
    lattice = libcasm.xtal.Lattice(work.cell.T)
    prim = libcasm.configuration.Prim(libcasm.xtal.Prim(lattice, np.zeros((3, 1)), [list(SPECIES)], title="rival"))
    specs = make_clex_basis_specs(prim, max_length=[0.0, 0.0, *work.reach], occ_site_basis_functions_specs="chebychev")
    axes = CompositionConverter(list(SPECIES), np.eye(2))
    with tempfile.TemporaryDirectory() as folder:
        source, _, _ = write_clexulator(prim, specs, folder, project_name="rival", verbose=False)
        basis = json.loads((Path(folder) / "basis.json").read_text())
        clusters = [(len(orbit["prototype"]["sites"]), orbit["mult"]) for orbit in basis["orbits"]]
        for orbit, energy in zip(basis["orbits"], work.coefficients(clusters), strict=True):
            orbit["cluster_functions"][0]["eci"] = energy
        (Path(folder) / "eci.json").write_text(json.dumps(basis))
        data = {
            "prim": basis["prim"], "composition_axes": axes.to_dict(),
            "basis_sets": {"formation_energy": {"source": Path(source).name}},
            "clex": {"formation_energy": {"basis_set": "formation_energy", "coefficients": "eci.json"}},
        }  # fmt: skip
        system = clexmonte.System.from_dict(data, search_path=[folder])
    configuration = system.make_default_configuration(np.diag([work.side, work.side, 1]))
    index = configuration.supercell.site_index_converter
    configuration.set_occupation(work.at(np.array([index.integral_site_coordinate(k).unitcell() for k in range(work.sites)])))
    conditions: dict[str, object] = {"temperature": work.temperature / casmglobal.KB}
    if work.swaps:
        conditions["mol_composition"] = [1 - work.labels.mean(), work.labels.mean()]
    else:
        conditions["param_chem_pot"] = [0.0]
    state = clexmonte.MonteCarloState(configuration, conditions=conditions)
    calculator = clexmonte.MonteCalculator("canonical" if work.swaps else "semigrand_canonical", system)
    calculator.set_state_and_potential(state)

    def advance(sweeps: int) -> Leg:
        run = calculator.make_default_sampling_fixture_params("leg", write_results=False, write_status=False)
        for name in list(run.analysis_names):
            run.do_not_perform_analysis(name)
        run.sampling_params.sampler_names = ["clex.formation_energy"]
        for name in ("potential_energy",) if work.swaps else ("potential_energy", "param_composition"):
            run.do_not_converge(name)  # else it stops before its time
        run.sample_by_pass(period=max(1, min(sweeps, 100)))  # an energy takes as long as a few passes
        run.set_completion_check_spacing(check_begin=10 * sweeps, check_period=10 * sweeps)
        run.set_max_count(sweeps)
        results = calculator.run_fixture(state, run).results
        energies = np.array(results.samplers["clex.formation_energy"].values())
        return Leg(results.n_accept + results.n_reject, results.n_accept, float(energies.mean()))

    total = float(calculator.potential.per_supercell())
    return Chain(version("libcasm-clexmonte"), total, "energy every 100 passes", advance)


RIVALS: dict[str, Callable[[Work], Chain]] = {"icet": icet, "smol": smol, "clease": clease, "casm": casm, "mcising": mcising}

# ------------------------------------------------------------------ the protocol


def cpu() -> float:
    """CPU seconds of this process and of those it started."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Driver:
    """A chain that goes on by legs of about so many CPU seconds each."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.speed = 0.0  # sweeps per CPU second, of the last piece

    def leg(self, seconds: float) -> dict[str, object]:
        """Go on in pieces, as many sweeps each as fit into the time by the speed of the one before."""
        begin, spent, pieces = cpu(), 0.0, []
        while spent < seconds:
            sweeps = max(1, int(self.speed * min(seconds / PIECES, seconds - spent)))
            pieces.append(self.chain.advance(sweeps))
            before, spent = spent, cpu() - begin
            self.speed = sweeps / max(spent - before, 1e-6)
        attempted, accepted, energies = zip(*pieces, strict=True)
        return {
            "attempted": sum(attempted),
            "accepted": None if None in accepted else sum(accepted),
            "cpu": spent,
            "energy": float(np.average(energies, weights=attempted)),
        }


def main(rival: str, work: str, task: str) -> None:
    """Set up, then answer line by line."""
    # packages print to standard output as well, some of them from C++: theirs goes to standard error
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**what: object) -> None:
        print(json.dumps(what), file=answers)

    try:
        chain = RIVALS[rival](Work.load(work, task))
    except (ImportError, UnableError) as reason:
        return answer(ready=False, reason=str(reason))
    answer(ready=True, version=chain.version, energy=chain.energy, note=chain.note)
    driver = Driver(chain)
    for line in sys.stdin:
        word, *seconds = line.split() or ["stop"]
        if word != "go":
            break
        answer(**driver.leg(float(seconds[0])))


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in RIVALS or sys.argv[2] not in COUPLINGS:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
