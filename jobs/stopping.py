"""How a job ends: its exit code, and what SIGTERM does.

    0    done
    2    an error that the user can mend
    75   SIGTERM: what is complete is written, and the same command goes on (EX_TEMPFAIL of sysexits.h); schedulers start it again
    130  Ctrl-C, with the same meaning

SIGTERM may come at any instant. Nothing that is written in place could be left half done (cdiff.data.storage), so the job just unwinds;
whatever hangs meanwhile, the process is gone after PATIENCE seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from cdiff.errors import CdiffError

RESUMABLE = 75
PATIENCE = 2.0  # seconds; `ray job stop` kills after 3


_sigterm = threading.Event()


def exit_code(work: Callable[[], None], stopped: str) -> int:
    """Do a job's work; its exit code.

    Args:
        stopped: what to tell whoever stopped it.
    """
    heed_sigterm()
    try:
        work()
    except CdiffError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        terminated = (
            _sigterm.is_set() or getattr(stop, "code", None) == signal.SIGTERM
        )  # Ray's, while it starts
        if isinstance(stop, SystemExit) and not terminated:
            raise
        print(f"stopped; {stopped}", file=sys.stderr, flush=True)
        if not terminated:
            return 130
        sys.stdout.flush()
        os._exit(RESUMABLE)  # Python's own way out takes seconds more, for threads of Ray and MLflow
    return 0


def heed_sigterm() -> None:
    """From here on SIGTERM does what Ctrl-C does. To be repeated after ray.init, which has a handler of its own."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    if _sigterm.is_set():
        return  # a second one cuts nothing short
    _sigterm.set()
    late = threading.Timer(PATIENCE, os._exit, (RESUMABLE,))
    late.daemon = True
    late.start()
    raise KeyboardInterrupt  # the only kind that passes through ray.wait unchanged
