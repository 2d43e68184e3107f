"""Monolayer Mo(1-x)Re(x)S2: four candidate interactions and four published STEM images.

The material: a triangular lattice of metal columns, a = 0.316 nm, each Mo or Re. Only the metal
sublattice is modelled. An energy E = sum_a w_a F_a is in kT at the (unknown) temperature at which
the configuration froze in; F_a counts the term over the whole crystal, each pair or triangle once.
A positive coupling makes its term rare, so w1 > 0 means that unlike neighbours avoid each other.

- R, random: no interaction, nothing to infer; what every other model has to beat.
- P1: unlike (Mo, Re) nearest-neighbour pairs, w1.
- P2: the same and unlike second-neighbour pairs, w2.
- M, many-body: mixed triangles of nearest neighbours, (Mo, Mo, Re) with t1 and (Mo, Re, Re) with t2,
  on one of the two triangle orientations (the three metals that share a sulphur site). Environment
  classes that are alike under all twelve symmetries of the ring cannot tell which of the two.

Every nearest-neighbour bond lies in exactly one triangle of an orientation and a mixed triangle has
two unlike bonds: P1 at w is M at (2w, 2w), so P1 is nested in M, as it is in P2.

The data: counts of the 26 classes of complete seven-site environments (a metal and its six metal
neighbours) in four images, from Vlcek et al. (2021). No window, label errors or temperature were
published with them. Re fractions of the centres are 0.02, 0.60, 0.84 and 0.96; the names of the images
are the nominal ones in per cent.
"""

from numpyro import distributions as dist

import bayesatoms as ba

metal = ba.Lattice.triangular(a=0.316)  # nm
alloy = {"lattice": metal, "species": ("Mo", "Re")}
up = metal.triangle("up")

# The priors of different models are matched in physical scale, or their evidences could not be
# compared: P1 at w is M at (2w, 2w), so a triangle's prior is twice as wide as a pair's.
pair = dist.Normal(0, 1)  # kT
triangle = dist.Normal(0, 2)  # kT

R = ba.Hamiltonian("R", **alloy)
P1 = ba.Hamiltonian("P1", ba.Pair("Mo", "Re", shell=1, name="w1", prior=pair), **alloy)
P2 = ba.Hamiltonian(
    "P2",
    ba.Pair("Mo", "Re", shell=1, name="w1", prior=pair),
    ba.Pair("Mo", "Re", shell=2, name="w2", prior=pair),
    **alloy,
)
M = ba.Hamiltonian(
    "M",
    ba.Cluster(("Mo", "Mo", "Re"), up, name="t1", prior=triangle),
    ba.Cluster(("Mo", "Re", "Re"), up, name="t2", prior=triangle),
    **alloy,
)

environments = ba.Environments(metal, ("Mo", "Re"))


def published(name: str, sites: int, around_mo: list[int], around_re: list[int]) -> ba.Observation:
    """One image: counts of the classes with a Mo and with a Re centre, in the order of ``environments.names``."""
    source = {"doi": "10.1038/s41524-021-00507-7", "kind": "published environment counts"}
    return ba.Observation.from_counts([*around_mo, *around_re], environments, name=name, sites=sites, source=source)


# Classes of a centre: Re neighbours 0, 1, 2 (opposite, next, adjacent), 3 (next only, mixed, in a row), 4 (the same three as 2), 5, 6.
MODELS = [R, P1, P2, M]
DATA = [
    published("re05", 464, [404, 45, 0, 2, 2, 0, 0, 1, 0, 0, 0, 0, 0], [7, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    published("re55", 466, [0, 3, 3, 9, 6, 7, 46, 7, 21, 27, 23, 30, 6], [1, 16, 21, 18, 15, 6, 49, 21, 7, 32, 28, 46, 18]),
    published("re78", 434, [0, 0, 0, 0, 0, 0, 0, 0, 3, 9, 0, 34, 22], [0, 0, 0, 0, 1, 1, 14, 7, 14, 19, 26, 159, 125]),
    published("re95", 471, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 14], [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 6, 85, 358]),
]
REFERENCES = [
    "L. Vlcek, S. Yang, Y. Gong, P. Ajayan, W. Zhou, M. F. Chisholm, M. Ziatdinov, R. K. Vasudevan, S. V. Kalinin, "
    "Thermodynamics of order and randomness in dopant distributions inferred from atomically resolved imaging, "
    "npj Computational Materials 7, 42 (2021), doi:10.1038/s41524-021-00507-7",
]
