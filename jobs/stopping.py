"""How a job ends: its exit code, and what SIGTERM does.

    0    done
    2    an error that the user can mend
    75   SIGTERM: what is complete is written, and the same command goes on (EX_TEMPFAIL of sysexits.h); schedulers start it again
    130  Ctrl-C, with the same meaning
    143  SIGTERM to a job that does not go on by itself

SIGTERM may come at any instant. Nothing that is written in place could be left half done (cdiff.data.storage), so the job just unwinds;
whatever hangs meanwhile, the process is gone after PATIENCE seconds (a service drains for longer), once what others wait for is given back (`meanwhile`),
or GIVING seconds later where that hangs, too.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cdiff.errors import CdiffError

RESUMABLE = 75
PATIENCE = 2.0  # seconds; `ray job stop` kills after 3
GIVING = 0.8  # seconds more, in which what others wait for can be given back
_patience, _resumable = PATIENCE, True
_sigterm = threading.Event()
_give_back: list[Callable[[], None]] = []


def exit_code(
    work: Callable[[], None], stopped: str, resumable: bool = True, patience: float = PATIENCE
) -> int:
    """Do a job's work; its exit code.

    Args:
        stopped: what to tell whoever stopped it.
        resumable: the same command goes on.
        patience: seconds from SIGTERM on that unwinding may take.
    """
    global _patience, _resumable
    _patience, _resumable = patience, resumable
    heed_sigterm()
    try:
        work()
    except (Exception, KeyboardInterrupt, SystemExit) as end:
        # Ray's own exit, where SIGTERM came while Ray started
        terminated = _sigterm.is_set() or getattr(end, "code", None) == signal.SIGTERM
        if terminated or _interrupted(end):
            print(f"stopped; {stopped}", file=sys.stderr, flush=True)
            if not terminated:
                return 130
            sys.stdout.flush()
            # Python's own way out takes seconds more, for threads of Ray and MLflow
            os._exit(_code(resumable))
        if not isinstance(end, CdiffError):
            raise
        print(f"{type(end).__name__}: {end}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def meanwhile(give_back: Callable[[], None]) -> Iterator[None]:
    """What must be given back even where unwinding hangs, so that whoever starts the job again need not wait for it."""
    _give_back.append(give_back)
    try:
        yield
    finally:
        _give_back.remove(give_back)


def heed_sigterm() -> None:
    """From here on SIGTERM does what Ctrl-C does. To be repeated after ray.init, which has a handler of its own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    if _sigterm.is_set():
        return  # a second one cuts nothing short
    _sigterm.set()
    late = threading.Timer(_patience, _leave)
    late.daemon = True
    late.start()
    raise KeyboardInterrupt  # the only kind that passes through ray.wait unchanged


def _leave() -> None:
    # beside each other: a storage out of reach keeps one for minutes, and then a lease runs out by itself
    givers = [threading.Thread(target=_give, args=(give,), daemon=True) for give in list(_give_back)]
    try:
        for giver in givers:
            giver.start()
        end = time.monotonic() + GIVING
        for giver in givers:
            giver.join(max(0.0, end - time.monotonic()))
    finally:  # no thread may be left to start
        os._exit(_code(_resumable))


def _give(give_back: Callable[[], None]) -> None:
    with suppress(Exception):
        give_back()


def _interrupted(end: BaseException | None) -> bool:
    """Whether Ctrl-C is where it began: what fails on the way out must not hide it."""
    while end is not None:
        if isinstance(end, KeyboardInterrupt):
            return True
        end = end.__cause__ or end.__context__
    return False


def _code(resumable: bool) -> int:
    return RESUMABLE if resumable else 128 + signal.SIGTERM
