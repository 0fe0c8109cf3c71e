"""Commands of our pages, as a person would copy them: a chapter's blocks, in their order."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "deploy" / "INSTALL.md"
OPERATIONS = ROOT / "deploy" / "OPERATIONS.md"


def chapter(page: Path, heading: str) -> str:
    """Its text, with the chapters below it. Raises LookupError where none begins so."""
    parts = re.split(r"^(#+ .+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    chapters = list(zip(parts[1::2], parts[2::2], strict=True))
    for number, (title, text) in enumerate(chapters):
        if title.lstrip("# ").startswith(heading):
            depth = len(title) - len(title.lstrip("#"))
            below = []
            for later, content in chapters[number + 1 :]:
                if len(later) - len(later.lstrip("#")) <= depth:
                    break
                below.append(later + content)
            return text + "".join(below)
    raise LookupError(f"{page.name} has no chapter {heading!r}")


def bash(page: Path, heading: str) -> str:
    """Its ```bash blocks as one script."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```$", chapter(page, heading), re.MULTILINE | re.DOTALL))


def console(page: Path, heading: str) -> str:
    """Its ```console blocks as one script: what stands behind each prompt."""
    blocks = re.findall(r"^```console\n(.*?)^```$", chapter(page, heading), re.MULTILINE | re.DOTALL)
    return "\n".join(line.removeprefix("$ ") for block in blocks for line in block.splitlines()) + "\n"


def commands(script: str) -> list[str]:
    """Those that do something: no settings, no waiting loops, no ends of either."""
    lines = script.replace("\\\n", " ").splitlines()
    found, waiting = [], False
    for line in lines:
        waiting = waiting or line.startswith("until ")
        if line.strip() and not waiting and not re.match(r"\s*(#|:|export |done\b)", line):
            found.append(" ".join(line.split()))
        waiting = waiting and not re.search(r"\bdone$", line)
    return found
