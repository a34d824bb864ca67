"""Who runs which cell: a file a cell, with a heartbeat. There is no lock and no server.

A claim spares others the work, no more: two processes that run the same cell write the same file. Ages are taken from
the clock of the file server, which all hosts share.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from rsdbench.runner.provenance import slurm_job

BEAT_EVERY = 15.0  # seconds
STALE_AFTER = 60.0  # seconds without a beat
PROCESSES = Path("/proc")


class Lease:
    """This process runs a cell. A context manager, made by `take`."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token = path, token
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lease:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.over.set()
        owner = read(self.path)
        if owner is not None and owner.get("token") == self.token:  # else somebody took it for abandoned
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self.over.wait(BEAT_EVERY):
            try:
                os.utime(self.path)  # without a time of ours: the file server sets its own
            except OSError:
                return


def take(path: Path, now: float) -> Lease | None:
    """Lease a cell, or None if somebody else runs it. path: the lease's file; now: by the folder's clock.

    Raises:
        OSError: the file cannot be written.
    """
    if path.exists():
        if is_live(path, now):
            return None
        path.unlink(missing_ok=True)
    token = uuid.uuid4().hex
    owner = {"token": token, "host": socket.gethostname(), "machine": machine(), "pid": os.getpid(), "job": slurm_job()}
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump(owner, stream)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Lease(path, token)


def read(path: Path) -> dict[str, Any] | None:
    """Who holds a lease; None if nobody does, or it is not readable (yet)."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and owner.keys() >= {"token", "machine", "pid"} else None


def is_live(path: Path, now: float) -> bool:
    """Whether a lease's process is at work: a beat within the last minute, and on this machine a process as well."""
    try:
        age = now - path.stat().st_mtime
    except FileNotFoundError:
        return False
    if abs(age) > STALE_AFTER:  # a beat far in the future is of a clock that has been set back since
        return False
    owner = read(path)
    if owner is None or owner["machine"] != machine():
        return True
    return is_running(owner["pid"])


def is_running(pid: int) -> bool:
    """Whether this machine has such a process; one that has ended and waits for its parent does not count."""
    if not PROCESSES.is_dir():  # not Linux
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            return True
        return True
    try:
        state = (PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def machine() -> str:
    """Names the set of process numbers that this process's own is one of: a boot of a host, or a container on it."""
    try:
        return (PROCESSES / "sys/kernel/random/boot_id").read_text() + str((PROCESSES / "self/ns/pid").readlink())
    except OSError:  # not Linux
        return socket.gethostname()
