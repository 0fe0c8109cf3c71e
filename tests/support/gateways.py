"""`equipoise gateway` as a process of its own, with a configuration for tests, and ways to wait for what it does."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pydicom
from pynetdicom import AE

from .processes import descendants

KILLABLE = Path(__file__).with_name("killable_gateway.py")


def configuration(folder: Path, url: str, rules: str, **tables: dict[str, Any]) -> Path:
    """Writes gateway.toml and rules.toml; `tables` are sections of it, `settings` the top level."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.toml").write_text(rules)
    top = {"directory": str(folder / "gateway"), "rules": "rules.toml", "reserve_megabytes": 0.001}
    top |= tables.pop("settings", {})
    known = {"triton": {"url": url, "timeout_seconds": 60.0}, "health": {"port": 0}, "review": {"port": 0}, **tables}
    lines = [f"{name} = {json.dumps(value)}" for name, value in top.items()]
    for table, values in known.items():
        lines += [f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]
    path = folder / "gateway.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + " }"
    return json.dumps(value)


@dataclass
class Running:
    """A gateway's process.

    Attributes:
        ports: `receive`, `health`.
        lines: what it has logged so far.
    """

    process: subprocess.Popen[str]
    directory: Path
    ports: dict[str, int] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    reader: threading.Thread | None = None

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['health']}{path}", timeout=30) as answer:
            return answer.read().decode()

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if line["event"] == event]

    def states(self, table: str) -> list[str]:
        """Of all studies or cases."""
        return [row[0] for row in rows(self.directory, f"SELECT state FROM {table}")]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.lines[-5:]
        if self.reader is not None:
            self.reader.join(30)  # its last lines


def rows(directory: Path, query: str) -> list[tuple[Any, ...]]:
    """Of the gateway's database, read beside it."""
    database = sqlite3.connect(f"file:{directory / 'gateway.db'}?mode=ro", uri=True, timeout=30)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


@contextmanager
def gateway(settings: Path, log: Path | None = None, script: Path | None = None) -> Iterator[Running]:
    """A started gateway, ready; or a script that starts some. What it writes goes to `log` as well."""
    command = [sys.executable, "-m", "equipoise_client.cli.main", "gateway", str(settings)]
    if script is not None:
        command = [sys.executable, str(script), str(settings)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ)
    running = Running(process, settings.parent / "gateway")
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if log is not None:
                with log.open("a") as file:
                    file.write(line)
            running.lines.append(json.loads(line) if line.startswith("{") else {"event": "noise", "text": line})
            if running.lines[-1]["event"] == "ready":
                running.ports = running.lines[-1]["ports"]
                ready.set()
        ready.set()

    running.reader = reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(60)
        assert script is not None or running.ports, running.lines
        yield running
    finally:
        with suppress(psutil.NoSuchProcess):
            for each in descendants(process.pid):  # a script's child as well
                each.kill()
        process.wait(30)
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def send(port: int, objects: list[bytes], aet: str = "EQUIPOISE") -> list[int]:
    """Stores DICOM files by C-STORE over one association; the status of each.

    On a busy machine pynetdicom's requestor may drop an answer ("unexpected C-STORE service message") and end the
    association half a minute later; the rest is then sent over another, as a modality would.
    """
    left = [pydicom.dcmread(io.BytesIO(each)) for each in objects]
    entity = AE(ae_title="MODALITY")
    for sop_class, syntax in {(each.SOPClassUID, each.file_meta.TransferSyntaxUID) for each in left}:
        entity.add_requested_context(sop_class, syntax)
    statuses: list[int] = []
    for _ in range(3):
        association = entity.associate("127.0.0.1", port, ae_title=aet)
        assert association.is_established
        try:
            while left and "Status" in (answer := association.send_c_store(left[0])):
                statuses.append(int(answer.Status))
                del left[0]
        finally:
            association.release()
        if not left:
            break
    assert not left, f"no answer to {len(left)} of {len(objects)}"
    return statuses
