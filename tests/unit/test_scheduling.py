"""What an application may schedule, and how it is told what it may not; what follows on a failure."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tasuki_mp import FailedJob, Job, Tasuki
from tasuki_mp.errors import HandlerError, ScheduleError
from tasuki_mp.schedule import ScheduleInfo


@pytest.fixture
def app() -> Tasuki:
    return Tasuki()


def infos(app: Tasuki) -> dict[str, ScheduleInfo]:
    app.load()
    return {info.name: info for info in app.registry.schedule_infos()}


def leaf(number: int = 0) -> None: ...


def test_a_function_becomes_a_handler_and_a_schedule(app: Tasuki) -> None:
    @app.schedule("*/15 * * * *", tz="Europe/Paris", jitter="30s", queue="night", priority=3, max_attempts=2)
    def sweep(batch: int = 10) -> Iterator[Job]:
        yield small.job(batch)

    small = app.handler(leaf)
    assert next(sweep()).row.handler == "leaf"
    (info,) = infos(app).values()
    assert (info.name, info.times.timetable, info.times.tz, info.jitter) == (
        "sweep",
        "*/15 * * * *",
        "Europe/Paris",
        30,
    )
    assert (info.job.handler, info.job.payload, info.job.queue, info.job.priority) == ("sweep", "{}", "night", 3)
    assert info.tick_argument is None


def test_one_handler_may_have_several_schedules(app: Tasuki) -> None:
    @app.schedule("@daily", name="leaf-daily")
    @app.schedule("@hourly", name="leaf-hourly")
    @app.handler(timeout=60)
    def work() -> None: ...

    assert {name: info.job.handler for name, info in infos(app).items()} == {
        "leaf-daily": "work",
        "leaf-hourly": "work",
    }
    with pytest.raises(ScheduleError, match="is there already"):
        app.schedule("@weekly", name="leaf-daily")(work)
    with pytest.raises(HandlerError, match=r"give queue to @app\.handler"):
        app.schedule("@weekly", queue="other")(work)


def test_the_tick_is_given_to_who_asks_for_it(app: Tasuki) -> None:
    @app.schedule("@daily")
    def report(tick: datetime, *, scale: float = 1) -> None: ...

    (info,) = infos(app).values()
    assert (info.tick_argument, info.job.payload) == ("tick", "{}")


def test_a_resource_may_be_defined_below(app: Tasuki) -> None:
    @app.schedule("@daily")
    def report(store) -> None: ...  # type: ignore[no-untyped-def]

    @app.resource
    def store() -> dict[str, str]:
        return {}

    assert "report" in infos(app)


def test_a_function_with_arguments_is_refused(app: Tasuki) -> None:
    app.schedule("@daily")(lambda_with_argument)
    with pytest.raises(ScheduleError, match=r"nothing gives 'lambda_with_argument' its argument path .*schedule_job"):
        app.load()


def lambda_with_argument(path: str) -> None: ...


def test_a_job_value_may_be_scheduled(app: Tasuki) -> None:
    job = app.handler(leaf).job(7).priority(0)
    app.schedule_job(job, "@monthly", name="leaf-7", overlap="skip", stored=False)
    assert infos(app)["leaf-7"].job == job.row
    for bad, reason in (
        (job.after(hours=1), "a due time of its own"),
        (job.unique(), "can't be unique"),
        (job.then(job), "be followed"),
    ):
        with pytest.raises(ScheduleError, match=reason):
            app.schedule_job(bad, "@monthly", name="bad", stored=False)
    with pytest.raises(TypeError, match="no Job"):
        app.schedule_job(leaf, "@monthly", name="bad", stored=False)  # type: ignore[arg-type]


class Told:
    """Stands in for an application's client: the names of schedules that it was to store."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def schedule_job(self, *_: object, name: str, **__: object) -> None:
        self.names.append(name)


class Own(Tasuki):
    """An application of somebody's own kind."""

    def __init__(self) -> None:
        super().__init__()


def told(app: Tasuki) -> list[str]:
    client: Any = Told()
    app._client = client
    return client.names  # type: ignore[no-any-return]


def use(app: Tasuki, job: Job, **options: Any) -> None:
    app.schedule_job(job, "@daily", name="daily", **options)


@pytest.mark.parametrize("kind", [Tasuki, Own])
def test_the_code_that_makes_an_application_declares_and_other_code_stores(kind: type[Tasuki]) -> None:
    app = kind()
    stored = told(app)
    job = app.handler(leaf).job()
    app.schedule_job(job, "@hourly", name="hourly")
    assert (list(infos(app)), stored) == (["hourly"], [])
    use(app, job)
    assert (list(infos(app)), stored) == (["hourly"], ["daily"])
    use(app, job, stored=False)
    app.schedule_job(job, "@weekly", name="weekly", stored=True)
    assert (list(infos(app)), stored) == (["hourly", "daily"], ["daily", "weekly"])
    conn: Any = object()
    with pytest.raises(ValueError, match="leave out conn="):
        app.schedule_job(job, "@weekly", name="other", stored=False, conn=conn)


def test_what_is_imported_declares_whoever_made_the_application(
    app: Tasuki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scheduled_at_import.py").write_text(
        "from tests.unit import test_scheduling as it\nit.use(*it.imported)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stored = told(app)
    imported.extend([app, app.handler(leaf).job()])
    importlib.import_module("scheduled_at_import")
    assert (list(infos(app)), stored) == (["daily"], [])


imported: list[Any] = []


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"tz": "Nowhere"}, "time zone"), ({"misfire": "all"}, "misfire is"), ({"name": "a b"}, "name")],
)
def test_mistakes_show_when_the_module_is_imported(app: Tasuki, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        app.schedule("@daily", **options)(leaf)


# ── handlers that yield ───────────────────────────────────────────────────────────────────────────────────────────────


def jobs() -> Iterator[Job]:
    yield from ()


async def jobs_async() -> AsyncIterator[Job]:
    for job in ():
        yield job


def anything():  # type: ignore[no-untyped-def]
    yield from ()


@pytest.mark.parametrize(
    ("function", "kind"), [(jobs, "generator"), (jobs_async, "async generator"), (anything, "generator")]
)
def test_a_handler_may_yield_jobs(app: Tasuki, function: Callable[..., Any], kind: str) -> None:
    assert app.handler(function).kind == kind


# ── on_failed ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_follows_on_a_failure_is_checked(app: Tasuki) -> None:
    @app.handler
    def alarm(failed: FailedJob) -> None: ...

    @app.handler
    def plain(id: int, handler: str, queue: str, attempt: int, error: dict[str, Any]) -> None: ...

    app.handler(name="one", on_failed=alarm)(leaf)
    two = app.handler(name="two", on_failed="plain")(leaf)
    app.load()
    assert two.info.policy.on_failed == "plain"

    app.handler(name="three", on_failed="nobody")(leaf)
    with pytest.raises(HandlerError, match="there is no handler 'nobody'"):
        app.load()


def test_a_follower_must_take_what_it_is_told(app: Tasuki) -> None:
    app.handler(leaf)
    app.handler(name="other", on_failed="leaf")(leaf)
    with pytest.raises(HandlerError, match=r"'leaf' can't take what it would be told .*FailedJob"):
        app.load()


def test_failures_do_not_follow_on_one_another_for_ever(app: Tasuki) -> None:
    def told(failed: FailedJob) -> None: ...

    app.handler(name="one", on_failed="two")(told)
    app.handler(name="two", on_failed="one")(told)
    with pytest.raises(HandlerError, match="for ever: one -> two"):
        app.load()
