"""How many threads native libraries use: one each, as the forkserver's environment says, and for a job of n units n.

What can be changed at run time is: through threadpoolctl (OpenMP, OpenBLAS, MKL, BLIS) and the calls of PyTorch and numexpr.
What is loaded while the job runs reads the environment. Numba and Polars read it when they are imported and never again, so a
child in which a job imported one of them is fixed to that job's number: see `is_fixed`. Jobs of one unit cost nothing here.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from threadpoolctl import LibController

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)
READ_AT_IMPORT: Final = {"numba": "NUMBA_NUM_THREADS", "polars": "POLARS_MAX_THREADS"}
"""Libraries (as modules) whose number of threads stands once they are imported. Numba refuses to compile when its variable
changes after that."""
_WITH_A_CALL: Final[dict[str, tuple[Callable[[Any], int], Callable[[Any, int], object]]]] = {
    "numexpr": (lambda numexpr: int(numexpr.get_num_threads()), lambda numexpr, count: numexpr.set_num_threads(count)),
    "torch": (lambda torch: int(torch.get_num_threads()), lambda torch, count: torch.set_num_threads(count)),
}
"""Libraries with calls of their own, that say the number and set it."""


def limit_native_threads() -> None:
    """One thread for each native pool, unless the environment says otherwise; before anything is imported."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")


class ThreadBudget:
    """The threads of native libraries in this process, raised for a job and lowered after it."""

    def __init__(self) -> None:
        self._fixable = [module for module in READ_AT_IMPORT if module not in sys.modules]
        self._variables: dict[str, str | None] = {}
        self._calls: dict[str, int] = {}
        self._pools: dict[str, int] = {}

    @property
    def is_fixed(self) -> bool:
        """Whether a job has imported what never changes its number of threads again. A fresh child is free to choose."""
        return not sys.modules.keys().isdisjoint(self._fixable)

    def raise_to(self, count: int) -> None:
        """Let whatever is loaded now, or will be, use so many threads, until `lower`."""
        standing = {variable for module, variable in READ_AT_IMPORT.items() if module in sys.modules}
        self._variables = {name: os.environ.get(name) for name in THREAD_VARIABLES if name not in standing}
        os.environ.update(dict.fromkeys(self._variables, str(count)))
        loaded = {module: sys.modules[module] for module in _WITH_A_CALL if module in sys.modules}
        pools = _pools()
        # All is asked before anything is set: what PyTorch is told, it passes on to its OpenMP.
        self._calls = {module: _WITH_A_CALL[module][0](library) for module, library in loaded.items()}
        self._pools = {pool.filepath: pool.num_threads for pool in pools}
        for module, library in loaded.items():
            _WITH_A_CALL[module][1](library, count)
        for pool in pools:
            pool.set_num_threads(count)

    def lower(self) -> None:
        """The job has ended: everything is as before, and what it has loaded uses one thread."""
        for name, value in self._variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for module, (_, tell) in _WITH_A_CALL.items():
            if module in sys.modules:
                tell(sys.modules[module], self._calls.get(module, 1))
        for pool in _pools():
            pool.set_num_threads(self._pools.get(pool.filepath) or 1)


def _pools() -> list[LibController]:
    from threadpoolctl import ThreadpoolController

    with warnings.catch_warnings():
        # That two OpenMP libraries are loaded at once is nothing that a job could do anything about.
        warnings.simplefilter("ignore", RuntimeWarning)
        return list(ThreadpoolController().lib_controllers)
