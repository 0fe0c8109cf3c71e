"""`equipoise gateway`, dying like by `kill -9` when it first passes a point, and started anew; at each point in turn.

Threads that get to a later point before wait there: so no kill finds a step of a later point finished. Each start is a
process of its own, forked from this one, which has only imported what they run.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from equipoise_clinic.gateway.service import Gateway, until_signalled
from equipoise_clinic.gateway.settings import load_settings

POINTS = (
    "intake.written",
    "intake.recorded",
    "source.taken",
    "source.remembered",
    "analysis.selected",
    "analysis.answered",
    "analysis.written",
    "analysis.drawn",
    "analysis.recorded",
    "analysis.ended",
    "journal.appended",
    "journal.recorded",
    "dispatched",
    "delivery.sent",
    "delivery.recorded",
    "tidied",
)
"""The end of every step. The process may die at any of them and loses nothing; it is killed at each in turn."""


def run(target: int) -> None:
    def passed(point: str) -> None:
        if POINTS.index(point) == target:
            os.kill(os.getpid(), signal.SIGKILL)
        if POINTS.index(point) > target:
            threading.Event().wait()

    service = Gateway(load_settings(Path(sys.argv[1])), passed=passed)
    until_signalled(service)
    service.run()


if __name__ == "__main__":
    for number, point in enumerate(POINTS):
        child = os.fork()
        if child == 0:
            run(number)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{point} was not passed")
        print(f"killed at {point}", file=sys.stderr)
