"""What a supervisor counts about its own work, in plain numbers; `collect` turns them into Prometheus metrics.

The supervisor's loop calls the counting methods for every job, so they touch a few integers and import nothing. The
thread of the HTTP server reads them at each scrape; a scrape may see one job's counters half-way, the next one won't.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from tasuki_mp.version import __version__

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from tasuki_mp.store.look import Depths

RUNTIME_BOUNDS: Final = (
    0.001,
    0.005,
    0.01,
    0.05,
    0.1,
    0.5,
    1.0,
    5.0,
    15.0,
    60.0,
    300.0,
    900.0,
    3600.0,
    14_400.0,
    86_400.0,
)
WAIT_BOUNDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
LATENCY_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """How the supervisor stands at this moment."""

    slots: int
    children: int
    """Slots whose child is up."""
    running: int
    ready: int
    """Leased jobs that wait for a slot."""
    outbox: int
    """Outcomes that are not yet written down."""
    heartbeat_age: float | None
    """Seconds since the last heartbeat that succeeded; None before the first."""
    loop_lag: float
    """Seconds since the loop last came round; a quarter of one is nothing."""


class Histogram:
    """Observations counted into buckets with the given upper bounds, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulated(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as Prometheus wants them."""
        buckets, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), list(self.counts), strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        return buckets


class Metrics:
    """The counters of one supervisor. Handler names come from the application alone, so their number is bounded."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], int] = defaultdict(int)
        self.runtimes: dict[str, Histogram] = defaultdict(lambda: Histogram(RUNTIME_BOUNDS))
        self.waits: dict[str, Histogram] = defaultdict(lambda: Histogram(WAIT_BOUNDS))
        self.deaths: dict[str, int] = defaultdict(int)
        self.verdicts: dict[str, int] = defaultdict(int)
        self.leases = Histogram(LATENCY_BOUNDS)
        self.finishes = Histogram(LATENCY_BOUNDS)
        self.leased = 0
        self.empty = 0
        self.lost = 0

    def job_finished(self, handler: str, kind: str, *, seconds: float | None, waited: float) -> None:
        """An attempt ended as `kind` (completed, failed, canceled, retry, snooze, release).

        `seconds` is how long its handler ran, None if it was never entered; `waited` is from due to leased.
        """
        self.outcomes[handler, kind] += 1
        if seconds is not None:
            self.runtimes[handler].observe(seconds)
            self.waits[handler].observe(waited)

    def child_died(self, cause: str) -> None:
        """A child died that nobody asked to end; `cause` is a signal's name, `exit 9`, …: few different words."""
        self.deaths[cause] += 1

    def lease_took(self, seconds: float, jobs: int) -> None:
        self.leases.observe(seconds)
        self.leased += jobs
        self.empty += not jobs

    def finish_took(self, seconds: float) -> None:
        self.finishes.observe(seconds)

    def finish_verdict(self, verdict: str, jobs: int = 1) -> None:
        """What the database said to outcomes: applied, duplicate, stale."""
        self.verdicts[verdict] += jobs

    def lease_lost(self) -> None:
        """A heartbeat told that a job is no longer ours."""
        self.lost += 1


class Collector:
    """Hands the numbers to prometheus_client at each scrape."""

    def __init__(
        self,
        metrics: Metrics,
        gauges: Callable[[], Gauges],
        depths: Callable[[], Depths | None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._gauges = gauges
        self._depths = depths

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import InfoMetricFamily

        yield InfoMetricFamily("tasuki", "The program.", value={"version": __version__})
        yield from _job_families(self._metrics)
        yield from _latency_families(self._metrics)
        yield from _gauge_families(self._gauges())
        depths = self._depths() if self._depths is not None else None
        if depths is not None:
            yield from _depth_families(depths)


def _job_families(metrics: Metrics) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily

    outcomes = CounterMetricFamily("tasuki_jobs", "Attempts that ended.", labels=["handler", "outcome"])
    for (handler, kind), count in list(metrics.outcomes.items()):
        outcomes.add_metric([handler, kind], count)
    yield outcomes
    yield _by_handler("tasuki_job_runtime_seconds", "How long handlers ran.", metrics.runtimes)
    yield _by_handler("tasuki_job_wait_seconds", "From the instant a job was due to its lease.", metrics.waits)
    deaths = CounterMetricFamily("tasuki_child_deaths", "Children that died by themselves.", labels=["cause"])
    for cause, count in list(metrics.deaths.items()):
        deaths.add_metric([cause], count)
    yield deaths


def _by_handler(name: str, help_text: str, histograms: Mapping[str, Histogram]) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily(name, help_text, labels=["handler"])
    for handler, histogram in list(histograms.items()):
        family.add_metric([handler], histogram.cumulated(), histogram.total)
    return family


def _latency_families(metrics: Metrics) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

    for name, help_text, histogram in (
        ("tasuki_lease_seconds", "Round trips that lease.", metrics.leases),
        ("tasuki_finish_seconds", "Round trips that write outcomes.", metrics.finishes),
    ):
        yield HistogramMetricFamily(name, help_text, buckets=histogram.cumulated(), sum_value=histogram.total)
    yield CounterMetricFamily("tasuki_leased_jobs", "Jobs leased.", value=metrics.leased)
    yield CounterMetricFamily("tasuki_empty_leases", "Leases that found nothing.", value=metrics.empty)
    yield CounterMetricFamily("tasuki_leases_lost", "Leases that somebody else took back.", value=metrics.lost)
    verdicts = CounterMetricFamily("tasuki_finish_verdicts", "The database's answers to outcomes.", labels=["verdict"])
    for verdict, count in list(metrics.verdicts.items()):
        verdicts.add_metric([verdict], count)
    yield verdicts


def _gauge_families(gauges: Gauges) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    for name, help_text, value in (
        ("tasuki_slots", "Slots this supervisor has.", gauges.slots),
        ("tasuki_children", "Slots whose child is up.", gauges.children),
        ("tasuki_jobs_running", "Jobs that run here.", gauges.running),
        ("tasuki_jobs_ready", "Leased jobs that wait for a slot here.", gauges.ready),
        ("tasuki_outbox", "Outcomes not yet written down.", gauges.outbox),
        ("tasuki_heartbeat_age_seconds", "Since the last heartbeat that succeeded.", gauges.heartbeat_age),
        ("tasuki_loop_lag_seconds", "Since the loop last came round; up to 0.25 when idle.", gauges.loop_lag),
    ):
        if value is not None:
            yield GaugeMetricFamily(name, help_text, value=value)


def _depth_families(depths: Depths) -> Iterator[Metric]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    jobs = GaugeMetricFamily("tasuki_queue_jobs", "Live jobs in the whole database.", labels=["queue", "state"])
    oldest = GaugeMetricFamily("tasuki_queue_oldest_due_seconds", "Wait of the oldest due job.", labels=["queue"])
    for depth in depths.queues:
        for state in ("due", "scheduled", "held", "running"):
            jobs.add_metric([depth.queue, state], getattr(depth, state))
        oldest.add_metric([depth.queue], depth.oldest_due)
    yield jobs
    yield oldest
    for name, help_text, value in (
        ("tasuki_unknown_handler_jobs", "Pending jobs of handlers nobody alive knows.", depths.unknown_jobs),
        ("tasuki_unknown_handler_oldest_due_seconds", "Wait of the oldest of those.", depths.unknown_oldest_due),
        ("tasuki_notification_queue_usage", "How full Postgres's queue is, 0 to 1.", depths.notification_usage),
    ):
        yield GaugeMetricFamily(name, help_text, value=value)
