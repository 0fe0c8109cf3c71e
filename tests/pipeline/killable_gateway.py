"""`equipoise gateway`, but it dies like by `kill -9` when it first passes the named point."""

import os
import signal
import sys
from pathlib import Path

from equipoise_client.gateway.service import POINTS, Gateway, until_signalled
from equipoise_client.gateway.settings import load_settings

assert sys.argv[2] in POINTS, f"expected one of {POINTS}"


def passed(point: str) -> None:
    if point == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)


service = Gateway(load_settings(Path(sys.argv[1])), passed=passed)
until_signalled(service)
service.run()
