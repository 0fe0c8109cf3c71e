"""A repository of tiny pairs, and a way to see what a server leaves behind."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from equipoise_export.publish.repository import publish_pair


@dataclass(frozen=True)
class Traces:
    """Processes, shared-memory files and run directories of the servers that one test started."""

    processes: frozenset[str]
    shared_memory: frozenset[str]
    directories: frozenset[str]

    @classmethod
    def now(cls, temporary: Path, caller: int) -> Traces:
        """Of servers that `caller` (process id) started with their run directories in `temporary`."""

        commands = {each.pid: " ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])}
        return cls(
            frozenset(f"{pid} {command}" for pid, command in commands.items() if str(temporary) in command),
            frozenset(path.name for path in Path("/dev/shm").glob(f"equipoise_{caller}_*")),
            frozenset(str(path) for path in temporary.glob("equipoise-*")),
        )

    def __bool__(self) -> bool:
        return bool(self.processes or self.shared_memory or self.directories)


@pytest.fixture
def traces():
    """`Traces.now`, without the shared memory of servers that were there before the test."""
    before = frozenset(path.name for path in Path("/dev/shm").glob("equipoise_*"))

    def now(temporary: Path, caller: int) -> Traces:
        found = Traces.now(temporary, caller)
        return replace(found, shared_memory=found.shared_memory - before)

    return now


@pytest.fixture(scope="session")
def repository(tmp_path_factory, tiny_segmentation) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "models"
    publish_pair(tiny_segmentation, folder)
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where this test's servers put their run directories, so that other servers on the machine don't count."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder
