"""What a supervisor counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tasuki_mp.store.look import Depths, QueueDepth
from tasuki_mp.supervisor.metrics import Collector, Gauges, Histogram, Metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def gauges(heartbeat_age: float | None = 0.5) -> Gauges:
    return Gauges(slots=4, children=3, running=2, ready=1, outbox=5, heartbeat_age=heartbeat_age, loop_lag=0.1)


def samples(collector: Collector) -> Samples:
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_jobs_are_counted_by_handler_and_outcome() -> None:
    metrics = Metrics()
    metrics.job_finished("a", "completed", seconds=0.02, waited=0.5)
    metrics.job_finished("a", "completed", seconds=70.0, waited=0.0)
    metrics.job_finished("a", "release", seconds=None, waited=3.0)
    metrics.job_finished('b"\n', "failed", seconds=0.0, waited=0.0)
    found = samples(Collector(metrics, gauges))
    assert value(found, "tasuki_jobs_total", handler="a", outcome="completed") == 2
    assert value(found, "tasuki_jobs_total", handler="a", outcome="release") == 1
    assert value(found, "tasuki_jobs_total", handler='b"\n', outcome="failed") == 1
    assert value(found, "tasuki_job_runtime_seconds_count", handler="a") == 2
    assert value(found, "tasuki_job_runtime_seconds_sum", handler="a") == 70.02
    assert value(found, "tasuki_job_runtime_seconds_bucket", handler="a", le="0.05") == 1
    assert value(found, "tasuki_job_runtime_seconds_bucket", handler="a", le="60.0") == 1
    assert value(found, "tasuki_job_runtime_seconds_bucket", handler="a", le="+Inf") == 2
    assert value(found, "tasuki_job_wait_seconds_count", handler="a") == 2


def test_the_rest_is_counted_too() -> None:
    metrics = Metrics()
    metrics.child_died("SIGSEGV")
    metrics.child_died("SIGSEGV")
    metrics.lease_took(0.004, 7)
    metrics.lease_took(0.004, 0)
    metrics.finish_took(0.2)
    metrics.finish_verdict("applied", 3)
    metrics.finish_verdict("stale")
    metrics.lease_lost()
    found = samples(Collector(metrics, gauges))
    assert value(found, "tasuki_child_deaths_total", cause="SIGSEGV") == 2
    assert value(found, "tasuki_leased_jobs_total") == 7
    assert value(found, "tasuki_lease_seconds_count") == 2
    assert value(found, "tasuki_empty_leases_total") == 1
    assert value(found, "tasuki_finish_seconds_bucket", le="0.25") == 1
    assert value(found, "tasuki_finish_verdicts_total", verdict="applied") == 3
    assert value(found, "tasuki_finish_verdicts_total", verdict="stale") == 1
    assert value(found, "tasuki_leases_lost_total") == 1
    assert value(found, "tasuki_slots") == 4
    assert value(found, "tasuki_children") == 3
    assert value(found, "tasuki_jobs_running") == 2
    assert value(found, "tasuki_jobs_ready") == 1
    assert value(found, "tasuki_outbox") == 5
    assert value(found, "tasuki_heartbeat_age_seconds") == 0.5
    assert value(found, "tasuki_loop_lag_seconds") == 0.1


def test_what_is_not_known_has_no_figure() -> None:
    names = {name for name, _ in samples(Collector(Metrics(), lambda: gauges(None), lambda: None))}
    assert "tasuki_heartbeat_age_seconds" not in names
    assert "tasuki_queue_jobs" not in names


def test_queue_depths() -> None:
    depth = QueueDepth(queue="a", due=3, scheduled=2, held=1, running=4, oldest_due=7.5)
    depths = Depths(queues=[depth], unknown_jobs=6, unknown_oldest_due=61.5, notification_usage=0.25)
    found = samples(Collector(Metrics(), gauges, lambda: depths))
    states = {
        state: value(found, "tasuki_queue_jobs", queue="a", state=state) for state in ("due", "scheduled", "held")
    }
    assert states == {"due": 3, "scheduled": 2, "held": 1}
    assert value(found, "tasuki_queue_jobs", queue="a", state="running") == 4
    assert value(found, "tasuki_queue_oldest_due_seconds", queue="a") == 7.5
    assert value(found, "tasuki_unknown_handler_jobs") == 6
    assert value(found, "tasuki_unknown_handler_oldest_due_seconds") == 61.5
    assert value(found, "tasuki_notification_queue_usage") == 0.25


def test_a_histogram_puts_a_bound_into_its_own_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for seen in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.observe(seen)
    assert histogram.cumulated() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
