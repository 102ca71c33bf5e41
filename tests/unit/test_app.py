"""The application object: what it registers, what it loads and what it refuses, without a database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tasuki_mp
from tasuki_mp import Client, ConfigError, EnqueueInHandlerError, Tasuki, handlers

HEAVY = ("psycopg", "psycopg_pool", "click", "rich", "uvloop", "psutil", "prometheus_client")


def test_the_decorator_works_with_and_without_parentheses() -> None:
    app = Tasuki()

    @app.handler
    def one(x: int) -> int:
        return x

    @app.handler()
    def two(x: int) -> int:
        return x

    @app.handler(name="third", queue="q", max_attempts=1)
    async def three(x: int) -> int:
        return x

    assert list(app.registry.handlers) == ["one", "two", "third"]
    assert one(1) == two(1) == 1
    assert three.job(1).row == msgspec.structs.replace(one.job(1).row, handler="third", queue="q", max_attempts=1)


def test_the_resource_decorator_too_and_it_returns_the_function() -> None:
    app = Tasuki()

    @app.resource
    def plain() -> int:
        return 1

    @app.resource(name="other", eager=True)
    def named() -> int:
        return 2

    assert plain() == 1
    assert named() == 2
    assert {name: resource.is_eager for name, resource in app.registry.resources.items()} == {
        "plain": False,
        "other": True,
    }


def test_modules_must_be_a_list() -> None:
    with pytest.raises(ConfigError, match=r"modules=\['shop.images'\]"):
        Tasuki(modules="shop.images")


def test_enqueueing_inside_a_handler_is_an_error_that_names_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Tasuki(dsn="postgresql://nobody@localhost:1/nothing")

    @app.handler
    def one() -> None: ...

    monkeypatch.setattr(handlers, "running_job", "one (job 5)")
    for enqueue in (lambda: app.enqueue(one.job()), lambda: app.enqueue_many([one.job()])):
        with pytest.raises(EnqueueInHandlerError, match=r"one \(job 5\).*ctx\.enqueue.*conn="):
            enqueue()
    with pytest.raises(TypeError, match=r"conn= must be a psycopg\.Connection"):
        app.enqueue(one.job(), conn="not refused for being in a handler")  # type: ignore[arg-type]  # the mistake itself


@pytest.mark.parametrize("wrong", [3, ["postgresql://"], object()])
def test_a_client_takes_a_dsn_or_a_pool(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a dsn or a pool"):
        Client(wrong)


def test_no_database_named_anywhere_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TASUKI_DSN", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    app = Tasuki()

    @app.handler
    def one() -> None: ...

    with pytest.raises(ConfigError, match="TASUKI_DSN"):
        app.enqueue(one.job())


def test_everything_exported_is_there_and_nothing_else() -> None:
    for name in tasuki_mp.__all__:
        assert getattr(tasuki_mp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tasuki_mp.Nothing


def test_an_application_loads_nothing_that_a_child_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from tasuki_mp import Cancel, Context, Retry, Snooze, Tasuki\n"
        "app = Tasuki()\n"
        "@app.resource\n"
        "def model() -> dict: return {}\n"
        "@app.handler(queue='images', backoff=lambda attempt, error: 1)\n"
        "def thumbnail(path: str, *, model: dict, ctx: Context) -> None: ...\n"
        "thumbnail.job('a.png')\n"
    )
    program = (
        "import sys\n"
        "from tasuki_mp.handlers import load_app\n"
        f"load_app('shop:app', {str(tmp_path)!r}).registry.handlers['thumbnail'].decode('{{\"path\": \"a\"}}')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        "from tasuki_mp import Client\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == ["[]", "['psycopg', 'psycopg_pool']"]
