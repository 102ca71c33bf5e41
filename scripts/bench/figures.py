"""Measured pairs: ours and the reference, alternating, and what is said about them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

HEAD: Final = """\
| name | what | tasuki-mp | reference | ratio | goal | pairs, steal | measured beside it |
| --- | --- | --- | --- | --- | --- | --- | --- |"""
"""Of the table that `Row.as_markdown` makes the rows of."""

CPU_RATIO: Final = "ratio of CPU times for a job"
"""The reference's to ours, all processes and the server's: on a noisy machine it says more than that of the rates."""


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

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Row:
        """What `as_json` made."""
        return cls(**{**row, "pairs": [Pair(**pair) for pair in row["pairs"]]})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def with_those_of(self, other: Row) -> Row:
        """The pairs of both; the worse steal."""
        return replace(other, pairs=[*self.pairs, *other.pairs], steal=max(self.steal, other.steal))

    @property
    def ratio(self) -> float:
        return statistics.median(self.each("ratio"))

    @property
    def goal(self) -> float | None:
        """The ratio to be reached, if the target is one."""
        found = re.fullmatch(r"([\d.]+)(,.*)?", self.target)
        return float(found[1]) if found else None

    def each(self, side: Literal["ours", "reference", "ratio"]) -> list[float]:
        """That of each pair."""
        return [getattr(pair, side) for pair in self.pairs]

    def also(self, key: str) -> list[float]:
        """That extra of each pair that has it."""
        return [pair.extra[key] for pair in self.pairs if key in pair.extra]

    def lines(self) -> list[str]:
        """For people."""
        reached = f"{self._ratios()} in {len(self.pairs)} pairs; target {self.target}; steal {self.steal:.0%}"
        return [
            f"{self.name}: {self.what}",
            f"  ours       {_spread(self.each('ours'))} {self.unit}",
            f"  reference  {_spread(self.each('reference'))} {self.unit}  ({self.reference})",
            f"  ratio      {reached}",
            *(f"  {key}: {_spread(self.also(key))}" for key in self._keys()),
        ]

    def as_markdown(self) -> str:
        """A row of the table in docs/benchmarks.md."""
        extra = "; ".join(f"{key}: {_number(statistics.median(self.also(key)))}" for key in self._keys())
        cells = [
            f"`{self.name}`",
            self.what,
            f"{_spread(self.each('ours'))} {self.unit}",
            f"{self.reference}: {_spread(self.each('reference'))} {self.unit}",
            self._ratios(),
            self.target,
            f"{len(self.pairs)}, {self.steal:.0%}",
            extra,
        ]
        return f"| {' | '.join(cells)} |"

    def _keys(self) -> Iterable[str]:
        """Of what else there is; older results may lack some."""
        return dict.fromkeys(key for pair in self.pairs for key in pair.extra)

    def _ratios(self) -> str:
        ratios = self.each("ratio")
        return f"{self.ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
