"""The pages of this repository, taken apart: snippets, links, commands."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import typer
from equipoise_client.cli.main import _application
from equipoise_client.cli.verbs import registered

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<excuse>[^\n]+) -->\n)?^```(?P<language>\w*)(?: file=(?P<file>\S+))?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_COMMAND = re.compile(r"(?:^ *(?:\$ )?|[|&;(`/]|\w=\S+ )[ ]*equipoise\"? ([a-z]+)\b([^|&;#\n`]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@dataclass(frozen=True)
class Snippet:
    """One fenced block.

    Attributes:
        excuse: why it cannot be run, from the comment before it; None: it is run.
        file: it is the contents of this file, which later snippets use.
    """

    page: str
    number: int
    language: str
    code: str
    excuse: str | None
    file: str | None


@cache
def pages() -> tuple[str, ...]:
    """All Markdown files that git knows or would take, but not links to others."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return tuple(sorted({page for page in listed if (ROOT / page).is_file()}))


def readmes() -> tuple[str, ...]:
    return tuple(page for page in pages() if Path(page).name == "README.md")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text(page))


def snippets(page: str) -> list[Snippet]:
    return [
        Snippet(page, number, found["language"], found["code"], found["excuse"], found["file"])
        for number, found in enumerate(_FENCE.finditer(text(page)), 1)
    ]


def commands(page: str) -> Iterator[tuple[str, set[str]]]:
    """Verb and options of every `equipoise VERB …` on the page, in blocks and in the text."""
    for verb, rest in _COMMAND.findall(text(page).replace("\\\n", " ")):
        yield verb, set(OPTION.findall(rest))


@cache
def options() -> dict[str, set[str]]:
    """Verb → its options, from the commands themselves."""
    verbs = registered()
    found = {}
    for name in verbs:
        group = typer.main.get_command(_application(verbs, name))
        found[name] = {"--help"}
        for parameter in group.commands[name].params:  # type: ignore[attr-defined]
            found[name] |= {*parameter.opts, *parameter.secondary_opts}
    return found


def links(page: str) -> Iterator[tuple[str, str]]:
    """Path (empty: this page) and anchor of every link and picture that leads to a file here."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: str) -> set[str]:
    """Of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
