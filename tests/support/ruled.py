"""Handlers that fail in one way each, under every rule for that: `tests.support.ruled:app`.

`crash.fail` is the handler that crashes and has `on_crash="fail"`, and so on with `.default` and `.again`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from tasuki_mp import Backoff, Retry, Tasuki
from tests.support.stubborn import burn

app = Tasuki()

LATER: Final = Backoff(factor=3600, power=0, jitter=0)
"""What follows by default stands in its row for an hour; what a rule says follows at once."""


def error() -> None:
    raise ValueError("as agreed")


def crash() -> None:
    os._exit(3)


def memory() -> None:
    kept = [b"x" * (200 << 20)]
    burn()
    raise AssertionError(kept)


def bad_payload(_needed: int) -> None:
    raise AssertionError


def bad_result() -> Any:
    return object()


PROVOKED: Final[dict[str, tuple[Callable[..., Any], dict[str, Any]]]] = {
    "error": (error, {}),
    "timeout": (burn, {"timeout": 0.2}),
    "memory": (memory, {"memory": "100MiB"}),
    "crash": (crash, {}),
    "bad_payload": (bad_payload, {}),
    "bad_result": (bad_result, {}),
}
"""Each kind of failure that a handler can bring about itself."""


def hang() -> None:
    """Until the supervisor goes."""
    burn()


def _register(kind: str, function: Callable[..., Any], rules: dict[str, Any], **options: Any) -> None:
    for name, rule in rules.items():
        app.handler(name=f"{kind}.{name}", backoff=LATER, **options, **{f"on_{kind}": rule})(function)


for _kind, (_function, _options) in PROVOKED.items():
    _register(_kind, _function, {"default": None, "again": Retry(0), "fail": "fail"}, **_options)
for _kind in ("interrupted", "lost"):
    _register(_kind, hang, {"again": Retry(3600), "fail": "fail"})
