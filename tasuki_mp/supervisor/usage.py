"""What an attempt used, as the JSON text that is stored with it."""

from __future__ import annotations

import json
import socket
from typing import Final

_HOST: Final = json.dumps(socket.gethostname())


def usage_json(*, pid: int | None, slot: int | None, seconds: float | None, cpu: float | None, waited: float) -> str:
    """Host, pid, slot, wall seconds in the handler, CPU seconds of its process, seconds waited since the job was due.

    Written by hand because it is made for every job; a value that is unknown is left out.
    """
    text = f'{{"host":{_HOST},"waited_seconds":{waited:.6f}'
    if pid is not None:
        text += f',"pid":{pid},"slot":{slot}'
    if seconds is not None:
        text += f',"seconds":{seconds:.6f}'
    if cpu is not None:
        text += f',"cpu_seconds":{cpu:.6f}'
    return text + "}"
