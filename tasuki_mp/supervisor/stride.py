"""Which queue is served next: stride scheduling, so that weights are honoured and no queue starves. Pure.

C. A. Waldspurger and W. E. Weihl, "Stride scheduling: deterministic proportional-share resource management", 1995.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

_ONE: Final = 1 << 20


class Stride:
    """Shares leases between queues in proportion to their weights, by what each really took."""

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._stride = {queue: _ONE / weight for queue, weight in weights.items()}
        self._passed = dict.fromkeys(weights, 0.0)

    def order(self, queues: Sequence[str]) -> list[str]:
        """These queues, the most entitled first."""
        return sorted(queues, key=lambda queue: (self._passed[queue], queue))

    def quotas(self, queues: Sequence[str], total: int) -> dict[str, int]:
        """How many of `total` leases each queue should get if all of them have enough; every one gets at least one."""
        share = sum(1 / self._stride[queue] for queue in queues)
        return {queue: max(1, round(total / (self._stride[queue] * share))) for queue in queues}

    def took(self, counts: Mapping[str, int]) -> None:
        """That many jobs were leased from each queue."""
        for queue, count in counts.items():
            self._passed[queue] += count * self._stride[queue]
        # A queue that had nothing to give must not save up a claim on the future.
        if counts:
            floor = min(self._passed[queue] for queue in counts)
            for queue, passed in self._passed.items():
                self._passed[queue] = max(passed, floor - _ONE)
