"""Ctrl-C, SIGTERM and SLURM's notice: noted when they come, acted on where nothing is lost."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_NOTICES = (signal.SIGUSR1, signal.SIGUSR2)  # of SLURM, ahead of a job's end: --signal=USR1@120; submitit asks for USR2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *(_NOTICES if "SLURM_JOB_ID" in os.environ else ()))
_ONE_REQUEST = 2.0  # seconds within which a second signal is the same request: launchers repeat those of the group


class Interrupted(BaseException):
    """A signal asked the program to end; ``signum`` is which one."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _State:
    listening = False
    received: tuple[int, float] | None = None  # the signal and when it came
    waiting = False  # for something that may never come
    busy = False  # with something that an exception would spoil


_state = _State()


@contextmanager
def listening() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM are noted; a second one, seconds later, ends it at once.

    Does nothing outside the main thread, where Python cannot handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    _state.listening, _state.received, _state.busy = True, None, False
    listen()
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        _state.listening, _state.received, _state.busy = False, None, False


def listen() -> None:
    """Within `listening`, take the signals back from whoever handles them now."""
    if _state.listening and threading.current_thread() is threading.main_thread():
        for signum in _SIGNALS:
            signal.signal(signum, _note)


def received() -> int | None:
    """The signal that asked the program to end, if one did."""
    return _state.received and _state.received[0]


def check() -> None:
    """End here if the program was asked to.

    Raises:
        Interrupted: a signal came.
    """
    if signum := received():
        raise Interrupted(signum)


def take_notices_once() -> None:
    """Let whoever handles SLURM's notices do so once, and without being interrupted.

    SLURM may repeat the notice while submitit requeues the job, and then ends all processes of the job by SIGTERM, also
    the command that asks for it and has not come back yet; submitit would take that for a failure.
    """
    if threading.current_thread() is threading.main_thread():
        for signum in _NOTICES:
            if callable(handler := signal.getsignal(signum)):
                signal.signal(signum, partial(_once, handler))


def _once(handler: Callable[[int, FrameType | None], Any], signum: int, frame: FrameType | None) -> None:
    for ignored in (signum, signal.SIGTERM):  # by commands that the handler runs as well
        signal.signal(ignored, signal.SIG_IGN)
    handler(signum, frame)


def pass_on(signum: int) -> bool:
    """After `listening`, leave SLURM's notice to who handled it before, such as submitit; whether somebody did.

    In the first process of a job, submitit requeues the job and ends the process. It must not do so any earlier.
    """
    handler = signal.getsignal(signum)
    if signum not in _NOTICES or not callable(handler):
        return False
    handler(signum, None)
    return True


def hold(busy: bool) -> None:
    """Say whether stopping now would lose something; `waiting` then waits on."""
    _state.busy = busy


@contextmanager
def waiting() -> Iterator[None]:
    """For a block that may last for ever: a signal ends it at once, unless `hold` says otherwise.

    Raises:
        Interrupted: a signal comes, or has come.
    """
    _state.waiting = True
    try:
        if not _state.busy:
            check()
        yield
    finally:
        _state.waiting = False


def _note(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    first, now = _state.received, time.monotonic()
    _state.received = (signum, first[1]) if first and signum in _NOTICES else first or (signum, now)
    if (first and now - first[1] > _ONE_REQUEST) or (_state.waiting and not _state.busy):
        raise Interrupted(signum)
    if not first and os.environ.get("LOCAL_RANK", "0") == "0":
        # Not by logging, whose lock the interrupted code may hold.
        name = signal.Signals(signum).name
        os.write(2, f"\n{name}: stopping after this step; a second one stops at once\n".encode())


def leave_signals_to_parent(grace: int = 60) -> None:
    """In a worker: leave signals to the whole process group to the parent, which will end this process.

    Args:
        grace: seconds from a first SIGTERM to the end of this process all the same; the parent may have sent it. A
            second one ends it at once.
    """

    def wait(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.alarm(grace)  # whose own signal then ends it

    for signum in (signal.SIGINT, *_NOTICES):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, wait)
