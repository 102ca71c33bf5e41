"""The resources of one child: built once, on first use or at its start, closed in reverse order when it ends."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from tasuki_mp.child.describe import TRACEBACK_LIMIT, clip, storable
from tasuki_mp.handlers import Resource

log = logging.getLogger("tasuki_mp.child")


class Resources:
    """Builds what handlers ask for by name, together with whatever that needs."""

    def __init__(self, declared: Mapping[str, Resource[Any]], built: Mapping[str, Any] | None = None) -> None:
        self._declared = declared
        self._built: dict[str, Any] = dict(built or {})
        self._open: list[tuple[str, Iterator[Any]]] = []

    def is_built(self, name: str) -> bool:
        return name in self._built

    def get(self, name: str) -> Any:
        return self._built[name]

    def build(self, name: str) -> None:
        """Build a resource and those it takes. What its function raises is raised, and a later job tries again."""
        if name in self._built:
            return
        resource = self._declared[name]
        for _, needed in resource.injections:
            self.build(needed)
        value = resource.function(**{parameter: self._built[needed] for parameter, needed in resource.injections})
        if resource.is_generator:
            steps: Iterator[Any] = value
            value = next(steps)
            self._open.append((name, steps))
        self._built[name] = value

    def build_eager(self) -> str:
        """Build the resources that ask to stand before the first job; the traceback of the one that failed, or ''."""
        for name, resource in self._declared.items():
            if resource.is_eager:
                try:
                    self.build(name)
                except BaseException:  # noqa: BLE001  reported like a failed import: this child can't do its work
                    return clip(storable(traceback.format_exc()), TRACEBACK_LIMIT)
        return ""

    def close(self) -> None:
        """Run the code after each resource's `yield`, the last built first. An error in one does not stop the others."""
        while self._open:
            name, steps = self._open.pop()
            try:
                next(steps, None)
            except BaseException:
                log.exception("closing the resource %s failed", name)
        self._built.clear()
