"""What Linux says of the processes that are measured. Source: proc(5)."""

import os
from pathlib import Path


def parent(pid: int) -> int:
    """The process that started it; raises OSError where it has ended."""
    return int(_stat(pid)[1])


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that still run."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if parent(int(directory.name)) == pid:
                found.append(int(directory.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def cpu_s(pid: int) -> float:
    """The processor time of a process, user and system."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_kib(pid: int) -> int:
    """The resident memory of a process."""
    return _kib(pid, "smaps_rollup", "Rss:")


def pss_kib(pid: int) -> int:
    """The resident memory of a process, shared pages divided by those that share them."""
    return _kib(pid, "smaps_rollup", "Pss:")


def peak_kib(pid: int) -> int:
    """The most resident memory that a process ever had."""
    return _kib(pid, "status", "VmHWM:")


def _stat(pid: int) -> list[str]:
    """The fields of stat from the third on, `state`: the second, in brackets, is a name that may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _kib(pid: int, file: str, name: str) -> int:
    lines = (line.split() for line in Path(f"/proc/{pid}/{file}").read_text().splitlines())
    return next(int(words[1]) for words in lines if words and words[0] == name)
