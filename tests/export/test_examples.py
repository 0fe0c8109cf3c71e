"""The scripts of export/examples do what they say, as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from equipoise_core.loading import load_model

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "export" / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(900)]


def run_example(name: str, *words: Any) -> str:
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "next: equipoise" in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("script", "model"), [("segmentation.py", "lesion"), ("classifier.py", "spot"), ("regression.py", "disc")]
)
def test_a_network_of_ones_own_is_published_with_a_policy_that_accepts(tmp_path: Path, script: str, model: str) -> None:
    said = run_example(script, tmp_path / "models")
    loaded = load_model(tmp_path / "models" / model / "1")
    assert loaded.policy is not None and loaded.policy.guarantee is not None
    assert (tmp_path / "models" / f"{model}.calibration.html").is_file() and "calibration.html" in said


def test_a_vendors_file_gets_dropout_where_it_is_told(tmp_path: Path) -> None:
    said = run_example("vendor_onnx.py", tmp_path / "models")
    assert "There are:" in said
    (site,) = load_model(tmp_path / "models" / "vendor" / "1").contract.sites
    assert site.p == 0.1


def test_a_bundle_says_all_itself(tmp_path: Path) -> None:
    pytest.importorskip("monai.bundle")
    from .inputs.test_monai_bundle import WINDOW, make

    make(tmp_path / "spleen", WINDOW)
    run_example("monai_bundle.py", tmp_path / "spleen", tmp_path / "models")
    assert load_model(tmp_path / "models" / "spleen" / "1").contract.classes == ("background", "spleen")


def test_all_are_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "segmentation.py", "classifier.py", "regression.py", "vendor_onnx.py", "monai_bundle.py",
    }  # fmt: skip
