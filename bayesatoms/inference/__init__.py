"""Where theory and experiment meet: from a pool of chains and observations to posteriors and verdicts."""
