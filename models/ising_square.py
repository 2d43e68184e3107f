"""The Ising model on a square lattice: three candidate interactions and one simulated image.

The exercise that many courses on simulation begin with, and the one material whose answer is known
exactly. Spins s = -1 ("down") and s = +1 ("up") sit on a square lattice and have the energy

    H = -J sum s s' - mu h sum s

over nearest neighbours, each pair once, in a field h; the moment is mu = 0.67 Bohr magnetons in the
exercise. To map: magnetisation <s>, susceptibility chi = mu^2 N Var(m) / T with m the mean spin, and
specific heat over (h, T).

In the terms of this package, two species and an energy E = w F, F the number of unlike pairs:

- an unlike pair costs 2 J more than a like one, so w = 2 J / kT, kT at formation;
- turning a spin up gains 2 mu h, so the chemical potential of "up" against "down" is 2 mu h / kT;
- m = 2 x - 1 with x the composition of "up", so Var(m) = 4 Var(x).

The crystal orders at w = ln(1 + sqrt 2) = 0.881 at h = 0, that is at kT = 2.269 J (Onsager, 1944).
A crystal that formed at 1.3 times that temperature has w = 0.678.

- R, random: no interaction; what the others have to beat.
- P1: unlike nearest neighbours, w1: the Ising model.
- P2: the same and unlike second neighbours (the diagonals), w2, which is 0 in truth.

The data: one crystal of 32 x 32 spins, periodic, without a field, drawn at w1 = ln(1 + sqrt 2) / 1.3 by

    run_chain(P1.compile(square.supercell((32, 32))), [w1], np.arange(1024) % 2, samples=1, burn=2000,
              seed=np.random.SeedSequence(1), ensemble=SemiGrand((0.0, 0.0)), kernel="generic")

(`bayesatoms.montecarlo`, engine and ensembles). The magnetisation was free and is part of the outcome.
"""

import numpy as np
from numpyro import distributions as dist

import bayesatoms as ba

square = ba.Lattice.square()
spins = {"lattice": square, "species": ("down", "up")}

# Wide enough for both signs and for couplings beyond the transition at 0.88, where an image says little
# more than that the crystal was colder.
pair = dist.Normal(0, 1)  # kT

R = ba.Hamiltonian("R", **spins)
P1 = ba.Hamiltonian("P1", ba.Pair("down", "up", shell=1, name="w1", prior=pair), **spins)
P2 = ba.Hamiltonian(
    "P2",
    ba.Pair("down", "up", shell=1, name="w1", prior=pair),
    ba.Pair("down", "up", shell=2, name="w2", prior=pair),
    **spins,
)

# One bit a spin, row after row, 1 for up.
BITS = (
    "700080001c14c5011b00347e2f241c5c2c240f08fc068f8ffc1e410ffc1e4137"
    "9a1fe1f3b0f78039e1ffa03be17ffc3dfc7e247078e07e747678bff077e67ff0"
    "04667f9cc8f6643fcfdc6667df8c47c747945338dfc437e7ff4007cdff0007c8"
    "7e000fc006402fc807e0f88047e0f8000431f8018013900160b0f2047011c028"
)


def crystal(bits: str, side: int, name: str) -> ba.Observation:
    """A periodic crystal from its bits."""
    labels = np.unpackbits(np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)).reshape(side, side)
    return ba.Observation.from_labels(labels, square, ("down", "up"), periodic=True, name=name, source={"kind": "simulated"})


MODELS = [R, P1, P2]
DATA = [crystal(BITS, 32, "hot")]
REFERENCES = [
    "L. Onsager, Crystal statistics. I. A two-dimensional model with an order-disorder transition, Physical Review 65, 117 (1944), "
    "doi:10.1103/PhysRev.65.117",
]
