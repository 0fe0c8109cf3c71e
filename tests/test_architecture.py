"""The shape of the project: what may import what, and what lies where."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "model_repository/hippocampus/1/equipoise_core"

MAY_IMPORT = {
    "equipoise_core": set(),
    "equipoise_client": {"equipoise_core"},
    "equipoise_clinic": {"equipoise_core", "equipoise_client"},
    "equipoise_load": {"equipoise_core", "equipoise_client"},
    "equipoise_export": {"equipoise_core"},
    "equipoise_lab": {"equipoise_core", "equipoise_client", "equipoise_export"},
    "equipoise_deploy": {"equipoise_core", "equipoise_client", "equipoise_clinic", "equipoise_load"},
}
FOLDERS = {
    "equipoise_core": CORE,
    "equipoise_client": REPOSITORY / "client/equipoise_client",
    "equipoise_clinic": REPOSITORY / "client/equipoise_clinic",
    "equipoise_load": REPOSITORY / "client/equipoise_load",
    "equipoise_export": REPOSITORY / "export/equipoise_export",
    "equipoise_lab": REPOSITORY / "export/equipoise_lab",
    "equipoise_deploy": REPOSITORY / "deploy/equipoise_deploy",
}
INSIDE_EXPORT = {
    "graph": {"capture", "passes", "proof", "publish", "inputs", "calibration", "compile"},
    "capture": {"passes", "proof", "publish", "calibration", "compile"},
    "passes": {"capture", "proof", "publish", "calibration", "compile"},
    "proof": {"capture", "passes", "publish", "calibration", "compile"},
}
"""Folder of the exporter → what it must not import. The proof shares no code with what it proves."""


def imported(file: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@cache
def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    folder = FOLDERS[package]
    found = {}
    for file in folder.rglob("*.py"):
        parts = [package, *file.relative_to(folder).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


@cache
def edges(package: str) -> dict[str, set[str]]:
    """Module → the modules of the same package that it imports, for types alone too."""
    known = modules(package)
    return {name: set(_targets(name, file, known)) - {name} for name, file in known.items()}


def _targets(name: str, file: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            parts = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
        for alias in node.names:
            target = f"{base}.{alias.name}"
            if target in known or base in known:
                yield target if target in known else base


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    """lab → export → core; clinic, load → client → core; deploy stands on all that runs in service."""
    files = list(FOLDERS[package].rglob("*.py"))
    assert files
    for file in files:
        ours = imported(file) & set(MAY_IMPORT) - {package}
        if file.name == "verbs.py":  # registers with the command, whose package every installation has
            ours -= {"equipoise_client"}
        assert ours <= MAY_IMPORT[package], f"{file.relative_to(REPOSITORY)} imports {ours}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_circle_between_modules(package):
    """Not even for a type."""
    assert not circles(edges(package))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_circle_between_folders(package):
    """A folder that imports another one is not imported by it, in however many steps."""
    folders: dict[str, set[str]] = {}
    known = modules(package)

    def folder(name: str) -> str:
        depth = known[name].relative_to(FOLDERS[package]).parts[:-1]
        return depth[0] if depth else name

    for name, targets in edges(package).items():
        folders.setdefault(folder(name), set()).update(folder(target) for target in targets)
    for name, targets in folders.items():
        targets.discard(name)
    assert not circles(folders)


@pytest.mark.parametrize("stage", INSIDE_EXPORT)
def test_stages_of_the_exporter_know_only_what_they_share(stage):
    """Capture, passes and proof meet in `graph/` alone."""
    for name, targets in edges("equipoise_export").items():
        if name.split(".")[1:2] == [stage]:
            wrong = {target for target in targets if target.split(".")[1] in INSIDE_EXPORT[stage]}
            assert not wrong, f"{name} imports {wrong}"


def test_the_core_needs_numpy_and_nothing_else():
    """A published pair carries its own copy, and runs wherever the Python backend runs."""
    for file in CORE.rglob("*.py"):
        foreign = imported(file) - set(sys.stdlib_module_names) - {"numpy", "equipoise_core"}
        assert not foreign, f"{file.name} imports {foreign}"


def test_the_adapters_only_add_triton_and_what_they_adapt():
    """No second place where anything is decided."""
    public = imported(CORE.parent / "model.py") - set(sys.stdlib_module_names)
    assert public == {"numpy", "triton_python_backend_utils", "equipoise_core"}
    stand_in = imported(REPOSITORY / "model_repository/hippocampus_sampler/1/model.py") - set(sys.stdlib_module_names)
    assert stand_in == {"triton_python_backend_utils", "onnxruntime"}


def test_a_client_never_loads_torch():
    """Importing the client, or asking the command for help, leaves the heavy packages alone."""
    script = (
        "import sys, contextlib, io\n"
        "from equipoise_client import UncertaintyClient\n"
        "from equipoise_client.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['predict', '--help'])\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'monai'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_top_level_is_fixed():
    """Seven names, the build's files, and hidden ones."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    visible = {line.split("/")[0] for line in tracked.splitlines() if not line.startswith(".")}
    assert visible == {
        "README.md", "pyproject.toml", "model_repository", "export", "client", "tests", "deploy",
        "Makefile", "LICENSE", "CHANGELOG.md",
    }  # fmt: skip


def test_reference_models_share_one_copy_of_the_code():
    """What decides for pneumonia and nuclei is hippocampus's own code, by relative links that survive a move."""
    for name in ("pneumonia", "nuclei"):
        for entry in ("model.py", "equipoise_core"):
            link = REPOSITORY / "model_repository" / name / "1" / entry
            assert link.is_symlink() and not link.readlink().is_absolute()
            assert link.resolve() == (CORE.parent / entry).resolve()
