"""Leave in time when Slurm says so: SIGTERM and SIGUSR1 end the work, what is finished is kept.

A signal raises `Preempted` in the main thread, wherever that is, so that a long batch does not have to end first. A
thread of its own watches the clock: a main thread that is deep inside a library gets no further than its grace.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
CODE = os.EX_TEMPFAIL  # 75: "try again later", for sbatch scripts and Slurm's RequeueExit
GRACE = 8.0  # seconds after a signal until the process is ended whatever it is at


class Preempted(BaseException):
    """A signal has asked the process to leave. Not an `Exception`: nothing but the outermost caller handles it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)


class _State:
    """Of this process: how many shields are up, and the signal that waits behind them."""

    shields = 0
    waiting: int | None = None


@contextmanager
def preemptible() -> Iterator[None]:
    """In here, SIGTERM and SIGUSR1 raise `Preempted` once. Only the main thread can have that; others go unheeded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, _raise) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    left = False
    try:
        yield
    except Preempted:  # the watch stays until the process ends
        left = True
        raise
    finally:
        if not left:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(write)  # ends the watch


@contextmanager
def shielded() -> Iterator[None]:
    """Short work that a signal must not cut in two: it is raised at the end instead."""
    _State.shields += 1
    try:
        yield
    finally:
        _State.shields -= 1
    if not _State.shields and _State.waiting is not None:
        signum, _State.waiting = _State.waiting, None
        _leave(signum)


def _raise(signum: int, _: Any) -> None:
    if _State.shields:
        _State.waiting = signum
    else:
        _leave(signum)


def _leave(signum: int) -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # one is enough: what it sets off must not be cut short by the next
    raise Preempted(signum)


def _watch(read: int) -> None:
    """End the process `GRACE` seconds after the first signal, unless the pipe is closed before."""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while received := pipe.read(1):
            if received[0] in SIGNALS:
                time.sleep(GRACE)
                os._exit(CODE)
