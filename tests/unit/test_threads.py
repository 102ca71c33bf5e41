"""The budget of native threads where two ways lead to one pool."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest

from tasuki_mp.child import threads


class FakeTorch(ModuleType):
    """Passes its number of threads on to the OpenMP library that it brings, as PyTorch does; is that pool, too."""

    filepath = "/lib/torch/libgomp.so"
    num_threads = 1

    def get_num_threads(self) -> int:
        return self.num_threads

    def set_num_threads(self, count: int) -> None:
        self.num_threads = count


def test_a_pool_that_a_library_sets_too_is_lowered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = FakeTorch("torch")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(threads, "_pools", lambda: [torch])
    budget = threads.ThreadBudget()
    for _ in range(2):
        budget.raise_to(3)
        assert torch.num_threads == 3
        budget.lower()
        assert torch.num_threads == 1
