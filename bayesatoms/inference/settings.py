"""Settings: how much to simulate, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How much to simulate and when to stop. The defaults serve a few images of some hundred sites.

    points : chains a round for each posterior; samples, sweeps, burn : records of a chain, sweeps
    between them and before the first; rounds : at most; moved : largest shift of a mean, in standard
    deviations, that counts as standing still; support : effective records under the posterior, in
    chains, below which chains are added; noise : largest part of a standard deviation by which the pool's own
    error may move a mean before chains are added; warmup, draws, parallel : NUTS steps and chains.
    """

    points: int = 8
    samples: int = 240
    sweeps: float = 2.0
    burn: float = 120.0
    rounds: int = 8
    moved: float = 0.15
    support: float = 1.0
    noise: float = 0.15
    warmup: int = 500
    draws: int = 2000
    parallel: int = 4
