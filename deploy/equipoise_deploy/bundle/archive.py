"""A tar in one spelling: written the same way every time, and refused when a single bit of it is spelt otherwise."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import ReleaseError, TamperedError

Content = Path | bytes

_BLOCK, _RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_CHUNK = 1 << 20
_LONGEST_NAME = 1 << 12


@dataclass
class Entry:
    """One file of an archive that is being read.

    Attributes:
        name: below the archive's root, with `/`.
        size: in bytes.
    """

    name: str
    size: int
    _file: BinaryIO

    def chunks(self) -> Iterator[bytes]:
        """Its content, once. Raises TamperedError where the archive ends before it."""
        left = self.size
        while left:
            chunk = self._file.read(min(left, _CHUNK))
            if not chunk:
                raise TamperedError(f"the archive ends inside {self.name}: it was cut off; fetch it again")
            left -= len(chunk)
            yield chunk


def write_archive(target: Path, contents: Mapping[str, Content], first: tuple[str, ...]) -> str:
    """Writes an archive in one step, and returns its SHA-256.

    Args:
        contents: name of each entry → a file, or what is in it.
        first: names that come before the others, in this order; the others are sorted.
    """
    names = [*first, *sorted(set(contents) - set(first))]
    draft = target.with_name(f".{target.name}.making")
    sha = hashlib.sha256()
    with draft.open("wb") as file:

        def put(block: bytes) -> None:
            sha.update(block)
            file.write(block)

        for name in names:
            content = contents[name]
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            put(_header(name, size))
            with _opened(content) as source:
                written = 0
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    put(chunk)
            if written != size:
                raise ReleaseError(f"{content!r} changed while it was bundled; try again")
            put(b"\0" * (-size % _BLOCK))
        file_end = file.tell() + 2 * _BLOCK
        put(b"\0" * (2 * _BLOCK + -file_end % _RECORD))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(target)
    return sha.hexdigest()


def read_archive(archive: Path) -> Iterator[Entry]:
    """Its entries in order; each has to be read to its end before the next is asked for.

    Raises TamperedError at the first bit that `write_archive` would not have written.
    """
    try:
        file = archive.open("rb")
    except OSError as error:
        raise ReleaseError(
            f"{archive} cannot be read: {error.strerror}; give the file that `bundle make` wrote"
        ) from error
    with file:
        while True:
            at = file.tell()
            block = file.read(_BLOCK)
            if len(block) < _BLOCK:
                raise TamperedError(f"{archive} ends at byte {at} without its end mark: it was cut off; fetch it again")
            if not any(block):
                _end(archive, file)
                return
            name, size = _parsed(archive, at, block, file)
            begin = file.tell()
            yield Entry(name, size, file)
            if file.tell() != begin + size:
                raise AssertionError(f"{name} was not read to its end")
            padding = file.read(-size % _BLOCK)
            if len(padding) != -size % _BLOCK or any(padding):
                raise TamperedError(
                    f"{archive}: the filling after {name} (byte {begin + size}) was changed; fetch it again"
                )


def _end(archive: Path, file: BinaryIO) -> None:
    at = file.tell()
    rest = file.read(_RECORD + 1)
    total = at + _BLOCK  # the second end block
    if any(rest) or len(rest) != _BLOCK + -total % _RECORD:
        raise TamperedError(f"{archive}: what comes after its end mark (byte {at}) was changed; fetch it again")


def _parsed(archive: Path, at: int, block: bytes, file: BinaryIO) -> tuple[str, int]:
    """Name and size of the entry whose head begins with `block`; a long name takes more blocks of the file."""
    try:
        head, info = block, tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        name = info.name
        if info.type == tarfile.GNUTYPE_LONGNAME:
            if info.size > _LONGEST_NAME:
                raise ValueError(f"it states a name of {info.size} bytes")
            spelled = file.read(info.size + -info.size % _BLOCK)
            name = spelled.rstrip(b"\0").decode()
            last = file.read(_BLOCK)
            head += spelled + last
            info = tarfile.TarInfo.frombuf(last, "utf-8", "strict")
        path = PurePosixPath(name)
        plain = not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."
        if not plain or head != _header(name, info.size):
            raise ValueError(f"the entry's head is not as it was written (it names {name[:80]!r})")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise TamperedError(f"{archive} was changed at byte {at}: {error}; fetch it again") from error
    return name, info.size


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")  # its names may be longer than 100


@contextmanager
def _opened(content: Content) -> Iterator[BinaryIO]:
    if isinstance(content, bytes):
        yield io.BytesIO(content)
    else:
        with content.open("rb") as file:
            yield file
