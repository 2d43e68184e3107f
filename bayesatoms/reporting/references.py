"""The papers that a run stands on, as data; the report prints those that this run used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ALWAYS = "always"


@dataclass(frozen=True)
class Reference:
    """One paper: what it was used for, who, what, where, and its identifier.

    `when` names the part of a run that uses it: "always", "comparison", "phases", "coexistence" (of a phase map with enough
    compositions) or "critical" (temperatures from crossings of two sizes, which a run by itself does not look for).
    """

    purpose: str
    authors: str
    title: str
    where: str
    identifier: str
    when: str = ALWAYS

    def __str__(self) -> str:
        return f"{self.authors}, {self.title}, {self.where}, {self.identifier}"


REFERENCES = (
    Reference(
        "statistical distance between histograms of environments; the published analysis",
        "L. Vlcek, S. Yang, Y. Gong, P. Ajayan, W. Zhou, M. F. Chisholm, M. Ziatdinov, R. K. Vasudevan, S. V. Kalinin",
        "Thermodynamics of order and randomness in dopant distributions inferred from atomically resolved imaging",
        "npj Computational Materials 7, 42 (2021)",
        "doi:10.1038/s41524-021-00507-7",
    ),
    Reference(
        "statistical distance",
        "W. K. Wootters",
        "Statistical distance and Hilbert space",
        "Physical Review D 23, 357 (1981)",
        "doi:10.1103/PhysRevD.23.357",
    ),
    Reference(
        "likelihood from the simulated mean and covariance of a statistic",
        "S. N. Wood",
        "Statistical inference for noisy nonlinear ecological dynamic systems",
        "Nature 466, 1102 (2010)",
        "doi:10.1038/nature09319",
    ),
    Reference(
        "Monte Carlo",
        "N. Metropolis, A. W. Rosenbluth, M. N. Rosenbluth, A. H. Teller, E. Teller",
        "Equation of state calculations by fast computing machines",
        "Journal of Chemical Physics 21, 1087 (1953)",
        "doi:10.1063/1.1699114",
    ),
    Reference(
        "multistate reweighting of the pool of chains",
        "M. R. Shirts, J. D. Chodera",
        "Statistically optimal analysis of samples from multiple equilibrium states",
        "Journal of Chemical Physics 129, 124105 (2008)",
        "doi:10.1063/1.2978177",
    ),
    Reference(
        "pseudo-likelihood, the start of the search",
        "J. Besag",
        "Spatial interaction and the statistical analysis of lattice systems",
        "Journal of the Royal Statistical Society B 36, 192 (1974)",
        "doi:10.1111/j.2517-6161.1974.tb00999.x",
    ),
    Reference(
        "sampling of the posterior (NUTS)",
        "M. D. Hoffman, A. Gelman",
        "The No-U-Turn Sampler: adaptively setting path lengths in Hamiltonian Monte Carlo",
        "Journal of Machine Learning Research 15, 1593 (2014)",
        "jmlr.org/papers/v15/hoffman14a",
    ),
    Reference(
        "probabilistic programming",
        "D. Phan, N. Pradhan, M. Jankowiak",
        "Composable effects for flexible and accelerated probabilistic programming in NumPyro",
        "preprint (2019)",
        "arXiv:1912.11554",
    ),
    Reference(
        "R-hat and effective sample size",
        "A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner",
        "Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC",
        "Bayesian Analysis 16, 667 (2021)",
        "doi:10.1214/20-BA1221",
    ),
    Reference(
        "diagnostics and leave-one-out, as computed here",
        "R. Kumar, C. Carroll, A. Hartikainen, O. Martin",
        "ArviZ a unified library for exploratory analysis of Bayesian models in Python",
        "Journal of Open Source Software 4, 1143 (2019)",
        "doi:10.21105/joss.01143",
    ),
    Reference(
        "BIC",
        "G. Schwarz",
        "Estimating the dimension of a model",
        "Annals of Statistics 6, 461 (1978)",
        "doi:10.1214/aos/1176344136",
        "comparison",
    ),
    Reference(
        "WAIC",
        "S. Watanabe",
        "Asymptotic equivalence of Bayes cross validation and widely applicable information criterion in singular learning theory",
        "Journal of Machine Learning Research 11, 3571 (2010)",
        "jmlr.org/papers/v11/watanabe10a",
        "comparison",
    ),
    Reference(
        "leave-one-out by Pareto-smoothed importance sampling",
        "A. Vehtari, A. Gelman, J. Gabry",
        "Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC",
        "Statistics and Computing 27, 1413 (2017)",
        "doi:10.1007/s11222-016-9696-4",
        "comparison",
    ),
    Reference(
        "short-range order parameter",
        "J. M. Cowley",
        "An approximate theory of order in alloys",
        "Physical Review 77, 669 (1950)",
        "doi:10.1103/PhysRev.77.669",
        "phases",
    ),
    Reference(
        "disagreement of the models on the phase (Jensen-Shannon divergence)",
        "J. Lin",
        "Divergence measures based on the Shannon entropy",
        "IEEE Transactions on Information Theory 37, 145 (1991)",
        "doi:10.1109/18.61115",
        "phases",
    ),
    Reference(
        "chemical potentials by trial insertion, here the exchange of one atom for another",
        "B. Widom",
        "Some topics in the theory of fluids",
        "Journal of Chemical Physics 39, 2808 (1963)",
        "doi:10.1063/1.1734110",
        "phases",
    ),
    Reference(
        "coexisting compositions: the common tangent",
        "J. W. Gibbs",
        "On the equilibrium of heterogeneous substances",
        "Transactions of the Connecticut Academy 3, 108 (1876); abstract in American Journal of Science 16, 441 (1878)",
        "doi:10.2475/ajs.s3-16.96.441",
        "coexistence",
    ),
    Reference(
        "critical temperatures where two sizes of crystal fluctuate alike",
        "K. Binder",
        "Finite size scaling analysis of Ising model block distribution functions",
        "Zeitschrift für Physik B 43, 119 (1981)",
        "doi:10.1007/BF01293604",
        "critical",
    ),
    Reference(
        "compiled Monte Carlo kernels",
        "S. K. Lam, A. Pitrou, S. Seibert",
        "Numba: a LLVM-based Python JIT compiler",
        "Proceedings of LLVM-HPC (2015)",
        "doi:10.1145/2833157.2833162",
    ),
)


def cited(parts: Iterable[str] = ()) -> tuple[Reference, ...]:
    """The papers that a run with these parts stands on.

    Parameters
    ----------
    parts : iterable of {"comparison", "phases", "coexistence", "critical"}

    Returns
    -------
    tuple of Reference

    Examples
    --------
    >>> any("Cowley" in r.authors for r in cited()), any("Cowley" in r.authors for r in cited(["phases"]))
    (False, True)
    """
    wanted = {ALWAYS, *parts}
    return tuple(r for r in REFERENCES if r.when in wanted)
