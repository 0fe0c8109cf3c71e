"""The trial PACS and viewer: it starts, serves, stores, is for this machine only, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from equipoise_clinic.dicom import archive

from ..support.phantom import phantom
from ..support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/viewer"


def answered(url: str) -> bytes:
    deadline, pause = time.monotonic() + 120, threading.Event()
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
        pause.wait(0.05)


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> Iterator[dict[str, Any]]:
    temporary = tmp_path_factory.mktemp("trial")
    ports = {name: free_port() for name in ("VIEWER_PORT", "ORTHANC_PORT", "DICOM_PORT")}
    environment = {**os.environ, "TMPDIR": str(temporary), **{name: str(port) for name, port in ports.items()}}
    process = subprocess.Popen(["bash", str(FOLDER / "trial.sh"), str(temporary / "storage")], env=environment)
    try:
        yield {**ports, "process": process, "temporary": temporary}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert [path.name for path in temporary.iterdir()] == ["storage"]


@pytest.mark.slow
def test_it_serves_and_stores(trial) -> None:
    """The viewer's page with this project's configuration; Orthanc behind the same origin, over DICOMweb and DICOM."""
    page = answered(f"http://127.0.0.1:{trial['VIEWER_PORT']}/")
    assert b"app-config.js" in page
    assert answered(f"http://127.0.0.1:{trial['VIEWER_PORT']}/app-config.js") == (FOLDER / "app-config.js").read_bytes()
    answered(f"http://127.0.0.1:{trial['ORTHANC_PORT']}/dicom-web/studies")
    first, *others = phantom().datasets
    dicom = f"dicom://ORTHANC@127.0.0.1:{trial['DICOM_PORT']}"
    web = f"http://127.0.0.1:{trial['ORTHANC_PORT']}/dicom-web"
    assert all(stored.done for stored in archive.send([first], dicom))
    assert all(stored.done for stored in archive.send(others, web))
    through = f"http://127.0.0.1:{trial['VIEWER_PORT']}/dicom-web"
    assert len(list(archive.fetch(through, first.StudyInstanceUID))) == len(others) + 1


@pytest.mark.slow
def test_others_are_kept_out(trial) -> None:
    """Whoever reaches Orthanc by another address of this machine is refused, and so is an unknown AE title."""
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()
    answered(f"http://127.0.0.1:{trial['ORTHANC_PORT']}/system")
    for address in (each for each in addresses if "." in each):
        with pytest.raises((urllib.error.HTTPError, ConnectionError)):
            urllib.request.urlopen(f"http://{address}:{trial['ORTHANC_PORT']}/system", timeout=10)
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://{address}:{trial['VIEWER_PORT']}/", timeout=10)
    to = f"dicom://ORTHANC@127.0.0.1:{trial['DICOM_PORT']}"
    with pytest.raises(Exception) as refused:
        (stored,) = archive.send([phantom().datasets[0]], to, calling_aet="STRANGER")
        assert not stored.done, "a stranger may store"
        raise PermissionError
    assert not isinstance(refused.value, AssertionError)


def test_the_viewer_asks_nobody_else() -> None:
    """The configuration names no other server, and the pages may load from their own origin only."""
    assert "http" not in (FOLDER / "app-config.js").read_text()
    assert "default-src 'self'" in (FOLDER / "nginx.conf").read_text()


def test_the_fetched_package_is_pinned() -> None:
    text = (FOLDER / "fetch.sh").read_text()
    assert "sha256sum --check" in text and "version=3." in text
