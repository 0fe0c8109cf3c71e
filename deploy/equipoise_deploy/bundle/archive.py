"""A bundle's tar: written the same way every time, read one plain file after the other."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from equipoise_core.canonical import digest_of_file

from ..errors import ReleaseError, TamperedError

Content = Path | bytes

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file of an archive that is being read. Its content can be read until the next entry is asked for.

    Attributes:
        name: below the archive's root, with `/`.
        size: in bytes.
    """

    name: str
    size: int
    content: IO[bytes]

    def chunks(self) -> Iterator[bytes]:
        return iter(partial(self.content.read, _CHUNK), b"")


def write_archive(target: Path, contents: Mapping[str, Content], first: tuple[str, ...]) -> str:
    """Writes an archive in one step, and returns its SHA-256.

    Args:
        contents: name of each entry → a file, or what is in it.
        first: names that come before the others, in this order; the others are sorted.
    """
    draft = target.with_name(f".{target.name}.making")
    with draft.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name in (*first, *sorted(set(contents) - set(first))):
                _add(tar, name, contents[name])
        file.flush()
        os.fsync(file.fileno())
    digest = digest_of_file(draft)
    draft.replace(target)
    return digest


def _add(tar: tarfile.TarFile, name: str, content: Content) -> None:
    info = tarfile.TarInfo(name)  # time, owner and mode are the same for every file and every machine
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
        info.size = source.seek(0, os.SEEK_END)
        source.seek(0)
        try:
            tar.addfile(info, source)
        except OSError as error:
            raise ReleaseError(f"{content!r} cannot be bundled: {error}") from error
        if source.read(1):
            raise ReleaseError(f"{content!r} changed while it was bundled; try again")


@contextmanager
def read_archive(archive: Path) -> Iterator[Iterator[Entry]]:
    """Its entries in order. Raises TamperedError for a damaged tar, and for anything but plain files below its root.

    Names, sizes and contents are checked no further: the manifest decides about them.
    """
    try:
        file = archive.open("rb")
    except OSError as error:
        raise ReleaseError(
            f"{archive} cannot be read: {error.strerror}; give the file that `bundle make` wrote"
        ) from error
    try:
        # As a stream: no decompression, no seeking, and no more memory than the archive has bytes.
        with file, tarfile.open(fileobj=file, mode="r|") as tar:
            yield (_entry(archive, tar, info) for info in tar)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise TamperedError(f"{archive} is damaged or not a bundle: {error}; fetch it again") from error


def _entry(archive: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Entry:
    """What `tarfile.data_filter` demands and more, written out: Debian 12's Python 3.11.2 does not have that filter."""
    content = tar.extractfile(info) if info.isreg() else None
    path = PurePosixPath(info.name)
    if content is None or path.is_absolute() or ".." in path.parts or str(path) != info.name:
        raise TamperedError(
            f"{archive} is refused: {info.name[:80]!r} is not a plain file below its root; fetch it again"
        )
    return Entry(info.name, info.size, content)
