"""`equipoise gateway`, but it dies like by `kill -9` when it first passes the named point.

Threads that get to a later point before that wait there: so each point's kill finds no step of a later one finished.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from equipoise_client.gateway.service import POINTS, Gateway, until_signalled
from equipoise_client.gateway.settings import load_settings

target = POINTS.index(sys.argv[2])


def passed(point: str) -> None:
    if POINTS.index(point) == target:
        os.kill(os.getpid(), signal.SIGKILL)
    if POINTS.index(point) > target:
        threading.Event().wait()


service = Gateway(load_settings(Path(sys.argv[1])), passed=passed)
until_signalled(service)
service.run()
