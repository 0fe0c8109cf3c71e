"""The shape of the project: what may import what, and what lies where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "model_repository/hippocampus/1/equipoise_core"

MAY_IMPORT = {
    "equipoise_core": set(),
    "equipoise_client": {"equipoise_core"},
    "equipoise_export": {"equipoise_core"},
    "equipoise_deploy": {"equipoise_core", "equipoise_client"},
}
FOLDERS = {
    "equipoise_core": CORE,
    "equipoise_client": REPOSITORY / "client/equipoise_client",
    "equipoise_export": REPOSITORY / "export/equipoise_export",
    "equipoise_deploy": REPOSITORY / "deploy/equipoise_deploy",
}


def imported(file: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package):
    """Export and client know the core and not each other; the core knows neither."""
    files = list(FOLDERS[package].rglob("*.py"))
    assert files
    for file in files:
        ours = imported(file) & set(MAY_IMPORT) - {package}
        assert ours <= MAY_IMPORT[package], f"{file.relative_to(REPOSITORY)} imports {ours}"


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
    assert stand_in == {"numpy", "triton_python_backend_utils", "onnxruntime"}


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
