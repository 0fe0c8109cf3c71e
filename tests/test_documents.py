"""The pages say what is true: sizes, links, paths, commands, snippets. `pipeline/test_readme.py` runs the snippets."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest
from equipoise_client.cli.verbs import registered

from .support.documents import (
    OPTION,
    ROOT,
    anchors,
    commands,
    links,
    options,
    pages,
    prose,
    readmes,
    snippets,
    text,
)

LARGEST = 8192
"""Bytes of a README: what somebody reads before they begin."""

BEFORE_A_RUN: set[str] = set()
"""Pages that `make bench` writes, where none was committed."""

USERS_OWN = re.compile(
    r"^(STORE|build|cases|certs|images|labels|last-week|models|results|store|studies|study|unlabelled)/"
)
"""Folders that a reader has or makes."""

TREES = ("The tree", "The code")
"""Headings of sections whose indented blocks are trees of files."""

PAGE = pytest.mark.parametrize("page", pages())
README = pytest.mark.parametrize("page", readmes())


@README
def test_a_readme_is_short(page):
    assert len(text(page).encode()) <= LARGEST


@PAGE
def test_every_link_leads_somewhere(page):
    """To a file here, and to a heading of it where one is named."""
    for path, anchor in links(page):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists() or path in BEFORE_A_RUN, f"{page} links to {path}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), f"{page} links to {path}#{anchor}"


@PAGE
def test_every_path_that_is_named_exists(page):
    """Paths in backticks, from the page's folder, the top, `tests/`, or a package beside the page."""
    beside = (ROOT / page).parent
    bases = [beside, ROOT, ROOT / "tests", *beside.glob("equipoise_*")]
    missing = [
        path
        for path in re.findall(r"`((?:\w[\w.*-]*/)+[\w.*-]*)(?:::\w+)?`", prose(page))
        if not USERS_OWN.match(path)
        and path not in BEFORE_A_RUN
        and page != "CHANGELOG.md"  # it names what was before
        and not any(_there(base, path) for base in bases)
    ]
    assert not missing


def _there(base: Path, path: str) -> bool:
    return any(base.glob(path.rstrip("/"))) if "*" in path else (base / path).exists()


@README
def test_every_file_in_a_tree_exists(page):
    """The annotated trees, line by line."""
    for heading in TREES:
        section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text(page), re.MULTILINE | re.DOTALL)
        parents: dict[int, Path] = {-1: (ROOT / page).parent}
        for indent, names in re.findall(r"^    ( *)(\S+(?: \S+)*)", section[1] if section else "", re.MULTILINE):
            parents = {depth: parent for depth, parent in parents.items() if depth < len(indent)}
            above = parents[max(parents)]
            for name in names.split():
                assert (above / name).exists(), f"{page}: {name} in {above.relative_to(ROOT)}"
            parents[len(indent)] = above / names.split()[0]


@PAGE
def test_every_command_exists_with_its_options(page):
    """`equipoise VERB --option`, held against the command itself."""
    if page == "CHANGELOG.md":  # it names what was before
        return
    for verb, named in commands(page):
        assert verb in options(), f"{page}: equipoise {verb}"
        assert named <= options()[verb], f"{page}: equipoise {verb} {named - options()[verb]}"


@README
def test_every_option_in_the_text_exists(page):
    """An option that stands alone in backticks belongs to some verb."""
    known = set().union(*options().values())
    for code in re.findall(r"`(--[^`]+)`", prose(page)):
        assert set(OPTION.findall(code)) <= known, f"{page}: {code}"


@PAGE
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text(page), re.MULTILINE))
    assert named <= targets


def test_every_extra_is_explained_with_its_verbs():
    """The table of extras is complete, and names every verb where its extra is."""
    project = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    assert extras
    table = {
        extra: set(re.findall(r"`([a-z]+)`", explained))
        for named, explained in re.findall(
            r"^\| (`[a-z]+`(?:, `[a-z]+`)*) \| (.+) \|$", text("README.md"), re.MULTILINE
        )
        for extra in re.findall(r"`([a-z]+)`", named)
    }
    assert set(re.findall(r"^([a-z]+) = \[", extras[1], re.MULTILINE)) <= set(table)
    for name, verb in registered().items():
        assert name in table[verb.extra], f"{name} needs the extra {verb.extra}"


@README
def test_every_snippet_is_run_or_says_why_not(page):
    """Whatever has no excuse is run by `pipeline/test_readme.py`; commands outside fences would escape it."""
    for snippet in snippets(page):
        assert snippet.language in {"bash", "python", "toml", "mermaid"}, f"{page}, block {snippet.number}"
        if snippet.excuse is not None:
            assert len(snippet.excuse.split()) >= 3, f"{page}, block {snippet.number}: {snippet.excuse}"
            named = re.findall(r"tests/[\w/]+(?:\.py)?", snippet.excuse)
            assert all((ROOT / path).exists() for path in named), f"{page}, block {snippet.number}: {snippet.excuse}"
    indented = re.findall(r"^ {4,}(?:\$ )?(?:equipoise|make|pip|python3?) .*$", prose(page), re.MULTILINE)
    assert not indented
    assert text(page).count("\n```") == 2 * len(snippets(page)), f"{page}: a fence is not closed"
    assert text(page).count("<!-- not run:") == sum(snippet.excuse is not None for snippet in snippets(page))


@README
def test_shell_snippets_parse(page):
    for snippet in snippets(page):
        if snippet.language == "bash":
            done = subprocess.run(["bash", "-n"], input=snippet.code, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@README
def test_python_snippets_compile_and_their_imports_resolve(page):
    """Every module that is imported is there, and has the name that is taken from it."""
    made = {Path(snippet.file).stem for snippet in snippets(page) if snippet.file}
    for snippet in snippets(page):
        if snippet.language != "python":
            continue
        tree = ast.parse(snippet.code)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module not in made:
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page}: {node.module}.{alias.name}"


@pytest.mark.parametrize(
    ("target", "needle"),
    {
        "model_repository/hippocampus/1/equipoise_core/decision.py": "return Decision(Route.ACCEPT",
        "export/equipoise_export/capture/torch_ops.py": "class _Marking",
        "client/equipoise_clinic/README.md": "equipoise send study/",
        "deploy/README.md": "equipoise rollback",
    }.items(),
    ids=["what decides accept", "a new stochastic layer", "sending a DICOM study", "rolling a model back"],
)
def test_a_stranger_gets_there_in_three_hops(target, needle):
    """By links alone, from the first page."""
    assert needle in text(target)
    reached, frontier = {"README.md"}, {"README.md"}
    for _ in range(3):
        frontier = {
            str(((ROOT / page).parent / path).resolve().relative_to(ROOT))
            for page in frontier
            if page in pages()
            for path, _ in links(page)
            if path
        } - reached
        reached |= frontier
    assert target in reached


def test_no_page_is_an_island():
    """Every page is linked from another one."""
    linked = {
        str(((ROOT / page).parent / path).resolve().relative_to(ROOT)) for page in pages() for path, _ in links(page)
    }
    assert not set(pages()) - linked - {"README.md"} - BEFORE_A_RUN
