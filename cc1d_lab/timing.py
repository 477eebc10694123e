"""How launches are timed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """When to stop sampling. Samples of the members of a group are taken in interleaved rounds.

    `warmup` rounds are thrown away. Then at least `min_samples` rounds, until the standard error of the mean of every member
    is below `rel_err` (stop reason `precise`), `max_samples` is reached (`count`), or `budget_s` seconds of
    the group are spent (`budget`).
    """

    warmup: int = 3
    min_samples: int = 10
    max_samples: int = 100
    rel_err: float = 0.002
    budget_s: float = 2.0


POLICIES = {
    "gpu": Policy(),
    "cpu": Policy(warmup=1, min_samples=3, max_samples=10, rel_err=0.02, budget_s=0.3),
    "s0": Policy(warmup=10, min_samples=100, max_samples=100, rel_err=0.0, budget_s=float("inf")),
}
