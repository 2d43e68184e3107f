"""Neural peers of the benchmark, in an environment of their own: python benchmarks/peers.py TASK.npz ANSWER.npz

Run by benchmarks/inference.py in whatever environment has sbi; imports nothing of this project. TASK holds
couplings (n, k) drawn from the prior Normal(0, prior_sd), statistics (n, d) simulated there, observed
statistics (images, d), grid points (m, k), the method ("NPE" or "NLE"), a budget and a seed. ANSWER
gets the log posterior on the grid (images, m) and the seconds of training and of evaluation. Networks,
optimiser and stopping rule are sbi's defaults; statistics are standardised by sbi itself.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from sbi.inference import NLE, NPE


def main(task: str, answer: str) -> None:
    """Train on the first `budget` simulations, evaluate on the grid."""
    with np.load(task) as file:
        given = dict(file)
    torch.set_num_threads(1)
    torch.manual_seed(int(given["seed"]))
    budget, k = int(given["budget"]), given["couplings"].shape[1]
    couplings, statistics, observed, points = (
        torch.as_tensor(given[name], dtype=torch.float32) for name in ("couplings", "statistics", "observed", "points")
    )
    prior = torch.distributions.MultivariateNormal(torch.zeros(k), float(given["prior_sd"]) ** 2 * torch.eye(k))
    clock = time.perf_counter()
    trainer = (NPE if str(given["method"]) == "NPE" else NLE)(prior=prior, show_progress_bars=False)
    trainer.append_simulations(couplings[:budget], statistics[:budget])
    estimator = trainer.train()
    trained, rows = time.perf_counter() - clock, []
    with torch.no_grad():
        for x in observed:
            if str(given["method"]) == "NPE":
                rows.append(estimator.log_prob(points[:, None], condition=x[None])[:, 0])
            else:
                likelihood = estimator.log_prob(x[None, None].expand(1, len(points), -1), condition=points)[0]
                rows.append(likelihood + prior.log_prob(points))
    seconds = np.array([trained, time.perf_counter() - clock - trained])
    np.savez(answer, log_posterior=torch.stack(rows).numpy().astype(float), seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
