"""The hazard log names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
LOG = TESTS.parent / "deploy" / "HAZARDS.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_test_that_the_hazard_log_names_exists():
    """A measure whose test was renamed or removed is no longer shown."""
    named = NAMED.findall(LOG.read_text(encoding="utf-8"))
    assert len(named) > 40
    missing = [f"{file}::{test}" for file, test in named if test not in _functions(TESTS / file)]
    assert not missing


def test_every_hazard_names_a_test():
    """No row of a table stands on words alone."""
    rows = [row for row in LOG.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    bare = [row for row in rows if not NAMED.search(row) and not row.startswith("| Hazard")]
    assert len(rows) > 25
    assert not bare


def test_every_test_that_the_security_page_names_exists():
    """Files, or whole folders."""
    page = (LOG.parent / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:client|clinic|core|deploy|export|lab|load|pipeline|support)/[\w/]+(?:\.py)?|test_\w+\.py)`", page
    )
    assert len(named) > 10
    places = {TESTS / name for name in named} - {TESTS / "deploy/Dockerfile"}
    assert not [str(place) for place in places if not place.exists()]


def _functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.parse("")
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
