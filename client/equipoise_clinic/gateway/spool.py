"""Files of the gateway. Each is written under a temporary name, synced, and renamed: a file with its name is whole."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from equipoise_client.errors import EquipoiseError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutOfRoom(EquipoiseError):
    """The disk is full, or fuller than the configured reserve allows. Work goes on when there is room again."""


@contextmanager
def room() -> Iterator[None]:
    """Raises OutOfRoom where the block finds the disk full."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutOfRoom("the disk is full; free some space, and the gateway goes on by itself") from None
        raise


class Spool:
    """The gateway's directory.

        incoming/STUDY/INSTANCE.dcm   received images      outbox/CASE/1.dcm …   results to send
        aside/KEY.dcm                 malformed objects    pictures/CASE.png     what the worklist shows
        temporary/                    files that are being written; emptied at every start
        patients.key                  turns patients into pseudonyms, for the audit log

    Names are the gateway's own random keys and hashes, never what stands in the files.

    Args:
        root: created if need be, for its owner only.
        reserve: bytes that new input must leave free.
    """

    def __init__(self, root: Path, reserve: int = 0) -> None:
        self.root = root
        self.reserve = reserve
        for folder in ("incoming", "outbox", "aside", "pictures", "temporary"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.root).free

    def check_room(self, size: int = 0) -> None:
        """Raises OutOfRoom where `size` more bytes would eat into the reserve."""
        if self.free - size < self.reserve:
            raise OutOfRoom("the disk is fuller than reserve_megabytes allows; free some space, nothing else is needed")

    def pseudonym(self, patient: str) -> str:
        """By which the audit log knows a patient again: a keyed digest. The key never leaves `patients.key`."""
        path = self.root / "patients.key"
        if not path.exists():
            self.write(path, secrets.token_bytes(32))
        return hmac.new(path.read_bytes(), patient.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]

    def incoming(self, study: str) -> Path:
        return self.root / "incoming" / study

    def instance(self, study: str, uid: str, digest: str = "") -> Path:
        """Another content under the same UID is another file: a crash between the two leaves the one that is known."""
        return self.incoming(study) / f"{hashlib.sha256((uid + digest).encode()).hexdigest()[:32]}.dcm"

    def outbox(self, case: str) -> Path:
        return self.root / "outbox" / case

    def picture(self, case: str) -> Path:
        return self.root / "pictures" / f"{case}.png"

    def aside(self, key: str) -> Path:
        return self.root / "aside" / f"{key}.dcm"

    def write(self, target: Path, content: bytes) -> None:
        """All of it or nothing. Raises OutOfRoom."""
        with self._renamed_to(target) as temporary:
            _write(temporary, content)
            target.parent.mkdir(exist_ok=True)
            _sync(target.parent.parent)

    def write_folder(self, target: Path, files: Mapping[str, bytes]) -> None:
        """A new folder with all files or none. Raises OutOfRoom."""
        with self._renamed_to(target) as temporary:
            temporary.mkdir()
            for name, content in files.items():
                _write(temporary / name, content)
            _sync(temporary)

    @contextmanager
    def _renamed_to(self, target: Path) -> Iterator[Path]:
        """Where to write what gets its name when it is whole; removed where it does not become so."""
        temporary = self.root / "temporary" / secrets.token_hex(8)
        with room():
            try:
                yield temporary
                temporary.rename(target)
                _sync(target.parent)
            finally:
                self.remove(temporary)

    def remove(self, path: Path) -> None:
        """A file or folder that nothing points to any more; gone already is fine."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, instances: set[Path], cases: set[str], aside: set[str]) -> int:
        """Removes what a crash left between a file's rename and its transaction; returns how many there were.

        Args:
            instances: files that the store knows; cases, aside: keys that it knows.
        """
        orphans = list((self.root / "temporary").iterdir())
        orphans += [each for each in (self.root / "incoming").glob("*/*") if each not in instances]
        orphans += [each for each in (self.root / "outbox").iterdir() if each.name not in cases]
        orphans += [each for each in (self.root / "pictures").iterdir() if each.stem not in cases]
        orphans += [each for each in (self.root / "aside").iterdir() if each.stem not in aside]
        for orphan in orphans:
            self.remove(orphan)
        return len(orphans)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename lasts only when its folder was written."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
