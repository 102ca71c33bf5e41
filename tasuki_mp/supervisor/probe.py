"""What /proc says of the memory and CPU time of processes. Linux only.

Memory is what only swapping could free: anonymous and shared pages, those swapped out included. Pages of mapped files are
left out, since the kernel drops them when it needs room. One read takes some 25 µs.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from tasuki_mp.supervisor import tree

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_OWN: Final = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_SHARE: Final = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


class Cpu(NamedTuple):
    """Seconds, processes that were waited for included."""

    user: float
    system: float


class Probe:
    """Reads the real /proc; a test puts another one in its place."""

    def memory(self, pid: int) -> int | None:
        """Bytes of the process, what it shares with others counted in full; None if it is gone."""
        return _sum(_read(f"/proc/{pid}/status"), _OWN)

    def share(self, pid: int) -> int:
        """Bytes of the process, of what it shares with others only its part; zero if it is gone.

        Walks over its page tables, 12 ms for each GiB: in a thread.
        """
        return _sum(_read(f"/proc/{pid}/smaps_rollup"), _SHARE) or 0

    def cpu(self, pid: int) -> Cpu | None:
        """CPU time of the process and of all that it has waited for, to a hundredth of a second; None if it is gone."""
        text = _read(f"/proc/{pid}/stat")
        if not text:
            return None
        # The name, in parentheses, may hold anything, spaces and parentheses too: count from its end.
        user, system, waited_user, waited_system = map(int, text[text.rindex(b")") + 2 :].split()[11:15])
        return Cpu((user + waited_user) * _TICK, (system + waited_system) * _TICK)

    def below(self, pid: int) -> list[int]:
        """The processes below this one, as far as can be seen."""
        try:
            return list(tree.descendants(pid))
        except OSError:  # no descriptor is left to look with
            return []


def _sum(text: bytes, names: tuple[bytes, ...]) -> int | None:
    if not text:
        return None
    total = 0
    for name in names:
        _, found, rest = text.partition(b"\n" + name)
        if found:
            total += int(rest[: rest.index(b"kB")])
    return total * 1024


def _read(path: str) -> bytes:
    """The content of a small file in /proc; empty if its process is gone, or no descriptor is left to look with."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 14)
    except ProcessLookupError:
        return b""
    finally:
        os.close(fd)
