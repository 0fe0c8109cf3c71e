"""A worklist with cases, served by the real command, and a real Chromium."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from equipoise_clinic.dicom.study import Slice
from equipoise_clinic.gateway.picture import draw
from equipoise_clinic.gateway.settings import load_settings
from equipoise_clinic.http_server import listen
from equipoise_clinic.review.identity import Doorkeeper, Reviewers
from equipoise_clinic.review.server import address, server
from equipoise_clinic.review.worklist import Worklist
from playwright.sync_api import sync_playwright

from .desk import Desk
from .studies import study

CHROMIUM = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync")  # fmt: skip


@dataclass
class Page:
    """A running `equipoise review`.

    Attributes:
        token: of the reviewer "dr.who".
    """

    url: str
    token: str
    desk: Desk


SCORES = {"a" * 16: 0.2, "b" * 16: 0.7, "c" * 16: 0.45}
"""Case → score."""


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Desk]:
    """Three cases to review and a rejected study."""
    desk = Desk(tmp_path / "gateway")
    for number, (case, score) in enumerate(SCORES.items()):
        desk.decided(desk.received(study()), study(count=2), case=case, score=score, why=f"reason <b>{number}</b>")
        desk.spool.write(desk.spool.picture(case), draw(_slice(number)))
    lost = desk.received(study())
    desk.store.studies.end(lost, "rejected", "slices are missing")
    desk.dispatched()
    yield desk
    desk.store.close()


def _slice(seed: int) -> Slice:
    grid = np.hypot(*np.mgrid[-20:20, -24:24])
    grey = np.random.default_rng(seed).integers(60, 200, grid.shape).astype(np.uint8)
    unsure = (0.6 * np.exp(-((grid - 9) ** 2) / 4)).astype(np.float32)
    return Slice(3, "1.2.3", grey, (grid < 9).astype(np.uint8), unsure, float(np.log(3)), (1.0, 1.0))


def configured(desk: Desk, **options: object) -> Path:
    """The gateway's configuration file; `options` go into [review]."""
    path = desk.directory.parent / "gateway.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"port": 0, **options}.items()]
    path.write_text(
        f'directory = "{desk.directory}"\nrules = "rules.toml"\n[receive]\n[deliver]\nhost = "pacs"\n[review]\n'
        + "\n".join(lines)
    )
    return path


@contextmanager
def commanded(desk: Desk, **options: object) -> Iterator[Page]:
    """`equipoise review` as a user starts and stops it."""
    command = [sys.executable, "-m", "equipoise_client.cli.main", "review", str(configured(desk, **options))]
    token = Reviewers(desk.directory / "reviewers.json").add("dr.who")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            url = process.stdout.readline().strip()
            assert url, process.stderr.read()
            yield Page(url, token, desk)
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 0 and not errors


@contextmanager
def reviewing(desk: Desk, **options: object) -> Iterator[Page]:
    """The same server in this process, which starts at once."""
    settings = load_settings(configured(desk, **options))
    reviewers = Reviewers(desk.directory / "reviewers.json")
    token = reviewers.add("dr.who")
    door = Doorkeeper(settings.review, reviewers)
    with listen("review", settings.review.host, settings.review.port) as listening:
        worklist = server(settings.review, Worklist(settings, desk.store), door, listening)
        thread = threading.Thread(target=worklist.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Page(f"{address(listening)}/", token, desk)
        finally:
            worklist.should_exit = True
            thread.join()


@pytest.fixture
def served(filled: Desk) -> Iterator[Page]:
    with reviewing(filled) as page:
        yield page


@pytest.fixture
def started(filled: Desk) -> Iterator[Page]:
    with commanded(filled, viewer="https://pacs.example.org/viewer?StudyInstanceUIDs={study}") as page:
        yield page


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium without a window. Not for the whole session: Playwright keeps an event loop running in this
    thread as long, and no other test could run one."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A page of a fresh visitor that reports every error of its own."""
    context = chromium.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.problems = problems
    yield page
    context.close()


def png(content: bytes):
    from PIL import Image

    return Image.open(io.BytesIO(content))
