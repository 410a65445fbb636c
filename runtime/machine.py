"""The machine and this process on it, as the system tells."""

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_PROCESSOR = Path("/proc/cpuinfo")


def resident() -> int | None:
    """Bytes of this process in physical memory now, None where the system does not tell."""
    return _status("VmRSS")


def peak() -> int:
    """Most bytes of this process in physical memory so far.

    VmHWM where there is one: `ru_maxrss` would start from what the parent held when it forked.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_average() -> list[float] | None:
    """Processes that ran or waited to, over 1, 5 and 15 minutes; None where it is not told."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, cores, system and Python, as plain JSON values."""
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = _PROCESSOR.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _status(key: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None
