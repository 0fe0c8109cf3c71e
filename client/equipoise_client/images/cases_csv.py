"""`cases.csv` as people's programs write it: with commas, semicolons or tabs, in UTF-8, UTF-16 or Excel's own code."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import InvalidInput
from .label_values import plain

NAME = "cases.csv"
_DELIMITERS = (",", ";", "\t", "|")
_ANSI = "cp1252"  # what Excel on Windows writes where it does not write UTF-8


@dataclass(frozen=True)
class CasesTable:
    """The rows, each by `plain` names of its columns.

    Attributes:
        path: the file; it may be missing, then there is nothing.
        columns: `plain` name → as it is spelled.
        rows: cells without spaces around them; "" where a row has none.
    """

    path: Path
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]

    @classmethod
    def read(cls, path: Path) -> CasesTable:
        """Raises InvalidInput that says what was found."""
        if not path.is_file():
            return cls(path, {}, ())
        first, *lines = _text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        stated = first[4:5] if first.lower().startswith("sep=") else ""  # Excel's own first line
        if stated:
            first, *lines = lines or [""]
        delimiter = stated or next((each for each in _DELIMITERS if "file" in map(plain, _cells(first, each))), ",")
        header = _cells(first, delimiter)
        columns = {plain(name): name for name in header if name}
        if "file" not in columns:
            raise InvalidInput(f"{path}: expected a column `file`, and any of patient, group, label; got {header}")
        names = [plain(name) for name in header if name]
        twice = [name for name in header if names.count(plain(name)) > 1]
        if twice:
            raise InvalidInput(f"{path}: the columns {', '.join(twice)} have the same name; expected each once")
        rows = []
        try:
            for cells in csv.reader(lines, delimiter=delimiter):
                row = [cell.strip() for cell in cells]
                if not any(row):
                    continue
                if any(row[len(header) :]) or any(cell for name, cell in zip(header, row, strict=False) if not name):
                    raise InvalidInput(f"{path}: the row of {row[0]} has more cells than there are named columns")
                row += [""] * (len(header) - len(row))
                rows.append({plain(name): cell for name, cell in zip(header, row, strict=False) if name})
        except csv.Error as error:
            raise InvalidInput(f"{path} cannot be read: {error}") from error
        for number, stated_row in enumerate(rows, 1):
            if not stated_row["file"]:
                raise InvalidInput(f"{path}: row {number} states no file")
        return cls(path, columns, tuple(rows))


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):  # Excel's "Unicode text"
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode(_ANSI)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is text neither in UTF-8 nor in {_ANSI}; save it as UTF-8") from error
    warnings.warn(f"{path} is not in UTF-8: it is read as {_ANSI}, Excel's code; if that is wrong, save it as UTF-8",
                  stacklevel=2)  # fmt: skip
    return text


class ImageFinder:
    """Finds the image that a row means, among those in a folder."""

    def __init__(self, root: Path, images: list[Path]) -> None:
        self.root, self.images = root, images

    def find(self, stated: str) -> Path:
        """By its path from the folder or from its images/, or by a name that only one image has.

        Raises InvalidInput where none or several have it.
        """
        for spelled in dict.fromkeys((stated, stated.replace("\\", "/"))):
            for place in (self.root, self.root / "images", self.root / "imagesTr"):
                if (place / spelled).is_file():
                    return self._within(place / spelled, stated)
        same = self._named.get(stated) or self._named.get(stated.replace("\\", "/").rpartition("/")[2]) or []
        if len(same) != 1:
            found = f"{len(same)} files of that name" if same else "no such file"
            raise InvalidInput(f"{self.root / NAME}: {stated!r}: {found} in {self.root}; expected a path from there")
        return same[0]

    def _within(self, file: Path, stated: str) -> Path:
        path = os.path.relpath(file, self.root)
        if path.startswith(os.pardir):
            raise InvalidInput(
                f"{self.root / NAME}: {stated!r} lies outside of {self.root}; expected a path from there"
            )
        return self.root / path

    @cached_property
    def _named(self) -> dict[str, list[Path]]:
        """Images by name, and by name without its ending."""
        named: dict[str, list[Path]] = {}
        for file in self.images:
            for name in {file.name, stem(file)}:
                named.setdefault(name, []).append(file)
        return named


def stem(file: Path) -> str:
    """The name without its ending."""
    return file.name.removesuffix(".gz").rsplit(".", 1)[0]
