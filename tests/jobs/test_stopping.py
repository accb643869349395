"""How jobs end."""

import os
import signal
import subprocess
import sys

import pytest

from cdiff.errors import DataError
from jobs.stopping import exit_code


def test_each_end_has_its_code(capsys):
    def mendable() -> None:
        raise DataError("no photo here. Give a folder.")

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(lambda: None, "go on") == 0
    assert exit_code(mendable, "go on") == 2
    assert exit_code(interrupted, "go on") == 130
    told = capsys.readouterr().err.splitlines()
    assert told == ["DataError: no photo here. Give a folder.", "stopped; go on"]


def test_a_defect_is_not_dressed_up_as_the_users(capsys):
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_code(broken, "go on")


HANGS = """
import sys, time
from jobs.stopping import exit_code, meanwhile
def work():
    with meanwhile(lambda: print("given back", flush=True)):
        try:
            print("at work", flush=True)
            time.sleep(60)
        finally:
            print("unwinding", flush=True)
            time.sleep(float(sys.argv[1]))  # what hangs on the way out
            print("unwound", flush=True)
sys.exit(exit_code(work, "go on"))
"""


@pytest.mark.parametrize("hang", ["0.5", "60"])
def test_sigterm_unwinds_and_ends_within_its_patience_whatever_hangs(hang):
    with subprocess.Popen([sys.executable, "-c", HANGS, hang], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == "unwinding\n"
        os.kill(process.pid, signal.SIGTERM)  # a second one cuts nothing short
        assert process.stdout.readline() == ("unwound\n" if hang == "0.5" else "given back\n")
        assert process.wait(30) == 75


GIVES_IN_VAIN = """
import time
from jobs.stopping import exit_code, meanwhile
def work():
    with meanwhile(lambda: print("given back", flush=True)), meanwhile(lambda: time.sleep(60)):
        try:
            print("at work", flush=True)
            time.sleep(60)
        finally:
            time.sleep(60)
raise SystemExit(exit_code(work, "go on", patience=0.2))
"""


def test_what_cannot_be_given_back_keeps_neither_the_process_nor_the_rest():
    """A lease on a bucket that is out of reach; `ray job stop` kills after 3 seconds."""
    with subprocess.Popen(
        [sys.executable, "-c", GIVES_IN_VAIN], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(20) == 75
        assert process.stdout.read() == "given back\n"


def test_what_fails_on_the_way_out_does_not_hide_who_stopped_it(capsys):
    def fails_to_end() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise DataError("MLflow does not answer.")

    assert exit_code(fails_to_end, "go on") == 130
    assert capsys.readouterr().err == "stopped; go on\n"
