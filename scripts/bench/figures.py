"""Measured pairs: ours and the reference, alternating, and what is said about them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Pair:
    """One alternation. Both in `unit`; `ratio` is how much of the reference is reached, more is better."""

    ours: float
    reference: float
    ratio: float
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One benchmark's result."""

    name: str
    what: str
    unit: str
    reference: str
    target: str
    pairs: Sequence[Pair]
    steal: float
    """The share of the machine's CPU time that its host gave to others meanwhile."""

    @property
    def ratio(self) -> float:
        return statistics.median(pair.ratio for pair in self.pairs)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "pairs": [asdict(pair) for pair in self.pairs], "ratio": self.ratio}

    def lines(self) -> list[str]:
        """For people."""
        ratios = sorted(pair.ratio for pair in self.pairs)
        reached = f"{self.ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs)"
        return [
            f"{self.name}: {self.what}",
            f"  ours       {_spread([pair.ours for pair in self.pairs])} {self.unit}",
            f"  reference  {_spread([pair.reference for pair in self.pairs])} {self.unit}  ({self.reference})",
            f"  ratio      {reached}; target {self.target}; steal {self.steal:.0%}",
            *(f"  {key}: {_spread([pair.extra[key] for pair in self.pairs])}" for key in self.pairs[0].extra),
        ]

    def as_markdown(self) -> str:
        """A row of the table in docs/benchmarks.md."""
        ours, reference = (_spread([getattr(pair, side) for pair in self.pairs]) for side in ("ours", "reference"))
        ratios = sorted(pair.ratio for pair in self.pairs)
        extra = "; ".join(
            f"{key}: {_number(statistics.median(p.extra[key] for p in self.pairs))}" for key in self.pairs[0].extra
        )
        return (
            f"| `{self.name}` | {self.what}{' (' + extra + ')' if extra else ''} | {ours} {self.unit} "
            f"| {self.reference}: {reference} {self.unit} | {self.ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {self.target} | {self.steal:.0%} |"
        )


def _spread(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
