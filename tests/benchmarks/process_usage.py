"""What processes have used, as Linux counts it (/proc)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def processor_s(pid: int) -> float:
    """Processor time so far, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def anonymous_mib(pid: int | str = "self") -> float:
    """Memory without the files that are mapped, MiB."""
    return _status_mib(pid, "RssAnon")


def peak_mib(pid: int | str = "self") -> float:
    """The most memory that was held, MiB."""
    return _status_mib(pid, "VmHWM")


def _status_mib(pid: int | str, field: str) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def descendants(pid: int | str = "self") -> list[int]:
    """The process's children, their children, and so on."""
    children: list[int] = []
    with contextlib.suppress(OSError):  # a process or a thread may have ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return children + [more for child in children for more in descendants(child)]


def resident_mib(pid: int) -> float:
    """What a process and its descendants hold in memory, MiB; shared pages count once (PSS where readable)."""
    total = 0
    for process in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError, IndexError):  # it ended while it was looked at
            total += int(Path(f"/proc/{process}/smaps_rollup").read_text().split("\nPss:")[1].split()[0])
    return total / 1024
