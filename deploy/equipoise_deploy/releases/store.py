"""The store of releases, and the generation of them that is in service."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_client.errors import EquipoiseError
from equipoise_clinic.audit import AuditError, Kind, append
from equipoise_core.canonical import digest_of

from ..errors import ReleaseError, TamperedError
from .release import Release, read_release

FORMAT = "equipoise-generation/1"
DOCUMENT = "generation.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class ServedRelease:
    """The release of one model in a generation.

    Attributes:
        version: of the release.
        release: its digest.
        history: versions in service before, to which `rollback` returns, the latest last.
    """

    version: int
    release: str
    history: tuple[int, ...] = ()

    def document(self) -> dict[str, Any]:
        return {"version": self.version, "release": self.release, "history": list(self.history)}


@dataclass(frozen=True)
class Generation:
    """The releases that are served together. Number 0: none yet."""

    number: int
    models: Mapping[str, ServedRelease]

    def dumps(self) -> str:
        models = {name: served.document() for name, served in sorted(self.models.items())}
        document = {"format": FORMAT, "number": self.number, "models": models}
        return json.dumps({**document, "digest": digest_of(document)}, indent=1) + "\n"


NOTHING = Generation(0, {})


def read_generation(folder: Path) -> Generation:
    """What `generation.json` in `folder` says. Raises TamperedError where it is not as it was written."""
    path = folder / DOCUMENT
    try:
        content = path.read_bytes()
        document = json.loads(content)
        generation = Generation(
            int(document["number"]),
            {
                str(name): ServedRelease(int(c["version"]), str(c["release"]), tuple(int(v) for v in c["history"]))
                for name, c in document["models"].items()
            },
        )
        if generation.dumps().encode() != content:
            raise ValueError("it is not as this program writes it")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise TamperedError(
            f"{path} cannot be read: {type(error).__name__}: {str(error)[:200]}. Promote a model again, which makes a "
            "new generation, or point STORE/current at the one before"
        ) from error
    return generation


@dataclass(frozen=True)
class Store:
    """The folder of releases; the package's docstring shows its layout."""

    path: Path

    @property
    def current(self) -> Path:
        """What to give to `equipoise serve`."""
        return self.path / "current"

    @property
    def log(self) -> Path:
        """The audit log of decisions about releases."""
        return self.path / "log.jsonl"

    def folder(self, name: str, version: int) -> Path:
        return self.path / "models" / name / str(version)

    def versions(self, name: str) -> tuple[int, ...]:
        """Of one model, ascending."""
        folder = self.path / "models" / name
        found = (entry.name for entry in folder.iterdir()) if NAME.fullmatch(name) and folder.is_dir() else ()
        return tuple(sorted(int(each) for each in found if each.isdigit()))

    def names(self) -> tuple[str, ...]:
        """Of all models that have a release, sorted."""
        folder = self.path / "models"
        return tuple(sorted(e.name for e in folder.iterdir() if self.versions(e.name))) if folder.is_dir() else ()

    def generation(self) -> Generation:
        """The one in service; number 0 where there is none."""
        if not self.current.exists() and not self.current.is_symlink():
            return NOTHING
        return read_generation(self.current.resolve())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time, across processes. Makes the folder if it does not exist."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def log_decision(
        self, action: str, name: str, release: Release, before: int | None, by: str | None = None, **details: Any
    ) -> None:
        """Adds one line to the log, on the disk before this returns. Raises ReleaseError where the log is damaged.

        Args:
            before: version that was in service.
            by: who decided; by default the user of this machine.
            details: what else the line says.
        """
        body = {
            "action": action, "model": name, "version": release.version, "before": before, "release": release.digest,
            "model_digest": release.model_digest, "policy_digest": release.policy_digest, **details,
        }  # fmt: skip
        try:
            append(self.log, Kind.RELEASE, {**body, "by": by or user_and_host()})
        except AuditError as error:
            raise ReleaseError(
                f"{error}; see `equipoise audit verify {self.log}`. The releases in service are unchanged"
            ) from error
        except (OSError, EquipoiseError) as error:
            raise ReleaseError(
                f"{self.log} cannot be written: {error}. The releases in service are unchanged"
            ) from error

    def switch(self, models: Mapping[str, ServedRelease]) -> Generation:
        """Makes a generation of these releases and puts it into service by one rename. Call it `locked`.

        A reader of `current` sees all of the old generation or all of the new one.
        """
        generations = self.path / "generations"
        generations.mkdir(exist_ok=True)
        taken = [int(entry.name) for entry in generations.iterdir() if entry.name.isdigit()]
        generation = Generation(max([0, *taken]) + 1, dict(models))
        folder, draft = generations / str(generation.number), generations / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        for name, served in models.items():
            release = self.folder(name, served.version)
            for part in sorted(entry.name for entry in release.iterdir() if (entry / "config.pbtxt").is_file()):
                if (draft / part).is_symlink():
                    raise ReleaseError(
                        f"{name} has a model {part}, but another release in service has a model of that name"
                    )
                (draft / part).symlink_to(Path("../../models") / name / str(served.version) / part)
        (draft / DOCUMENT).write_text(generation.dumps(), encoding="utf-8")
        draft.rename(folder)
        link = self.path / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("generations") / folder.name)
        sync(folder / DOCUMENT, folder, generations)
        link.replace(self.current)
        sync(self.path)
        return generation

    def served_release(self, name: str, version: int, history: tuple[int, ...]) -> ServedRelease:
        return ServedRelease(version, read_release(self.folder(name, version)).digest, history)


def sync(*paths: Path) -> None:
    """Writes through to the disk; a power cut then leaves the old or the new state, nothing between."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def user_and_host() -> str:
    """`user@host`, as far as the machine has names."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as containers have
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
