"""The exporter from Python: a few lines, the same model as the command's, and no torch before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from equipoise_core.loading import load_model
from equipoise_export import ExportError, ExportRefused, Options, Sizes, calibrate, export, inspect
from equipoise_export.calibration.errors import CalibrationError
from equipoise_export.command import app
from equipoise_export.errors import SpecError
from torch import nn
from typer.testing import CliRunner

from ..support.networks import Classifier

NETWORKS = Path(__file__).parents[1] / "support" / "networks.py"
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(Classifier().state_dict(), path)
    return path


@pytest.mark.slow
def test_a_network_is_exported_in_a_few_lines(tmp_path: Path) -> None:
    """Channels and sizes follow from the example; what comes back says what was proven and published, and where.

    Its last layer fixes the size, which is noticed and noted.
    """
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(8 * 14 * 14, 3))
    exported = export(
        network,
        name="small",
        example=np.random.default_rng(0).standard_normal((1, 1, 16, 16)),
        classes=CLASSES,
        task="classification",
        into=tmp_path / "models",
    )
    assert exported.folder == tmp_path / "models" / "small"
    assert (exported.contract.channels, exported.contract.nominal) == (1, (16, 16))
    assert exported.contract.spatial == (16, 16) and "(16, 16) only" in exported.notes[0]
    assert [(site.name, site.p) for site in exported.contract.sites] == [("2", 0.3)]
    assert list(exported.samplers) == ["small_sampler", "small_first_pass"]
    assert all(check.passed for check in exported.proof.checks) and exported.cost.bits == 8
    assert exported.gain is not None and exported.gain.ratio > 0
    assert load_model(exported.folder / "1").contract.digest == exported.contract.digest


@pytest.mark.slow
def test_the_command_and_python_publish_the_same_model(weights: Path, tmp_path: Path) -> None:
    """From the factory, from the module in memory, and from the command line: one digest, files included."""
    command = [f"{NETWORKS}:Classifier", "--weights", str(weights), "--into", str(tmp_path / "command"), "--json"]
    command += ["--name", "small", "--task", "classification", "--input-shape", "1,16,16", "--classes", "a,b,c"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    digest = load_model(Path(json.loads(result.stdout.strip().splitlines()[-1])["folder"]) / "1").contract.model_digest

    network = Classifier()
    network.load_state_dict(torch.load(weights))
    example = torch.randn(3, 1, 16, 16)
    for place, module, files in (("memory", network, ()), ("factory", f"{NETWORKS}:Classifier", (weights,))):
        exported = export(
            module, name="small", example=example, classes=CLASSES, task="classification", weights=files,
            into=tmp_path / place,
        )  # fmt: skip
        assert load_model(exported.folder / "1").contract.model_digest == digest


@pytest.mark.slow
def test_inspection_leaves_the_module_and_the_disk_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites and cost come back; the probability that was tried is set in a copy, and flags stay as they were."""
    monkeypatch.chdir(tmp_path)
    network = Classifier()
    rates = [part.p for part in network.modules() if isinstance(part, nn.modules.dropout._DropoutNd)]
    found = inspect(
        network.train(), name="small", example=torch.randn(2, 1, 16, 16), classes=CLASSES, task="classification",
        options=Options(p=0.45, sizes=Sizes.FIXED),
    )  # fmt: skip
    assert [(site.name, site.p) for site in found.contract.sites] == [("channel_dropout", 0.45), ("head_dropout", 0.45)]
    assert found.cost.gain(20) > 1
    assert [part.p for part in network.modules() if isinstance(part, nn.modules.dropout._DropoutNd)] == rates
    assert all(part.training for part in network.modules())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "changes", "said"),
    [
        (7, {}, "got a int; expected an nn.Module"),
        (Classifier(), {"task": "labels"}, "task 'labels': expected classification or segmentation"),
        (Classifier(), {"colour": 1}, "colour cannot be stated; there are: name, task, shape"),
        (Classifier(), {"classes": "abc"}, "classes is 'abc'; expected a list"),
        (Classifier(), {"example": torch.zeros(16, 16)}, r"shape \[16, 16\]; expected images \[N, C, \*S\]"),
        (Classifier(), {"example": torch.full((1, 1, 16, 16), float("nan"))}, "expected normalised images"),
        (Classifier(), {"multiple": 5}, r"16 is no multiple of 5 \(--multiple\)"),
        (Classifier(), {"name": None}, "--name is missing"),
        (Classifier(), {"name": None, "task": None, "classes": None}, "--name, --task, --classes are missing"),
        (Classifier(), {"name": "chest x-ray"}, "--name: a model named 'chest x-ray' cannot be served by Triton"),
        (Classifier(), {"arguments": {"classes": 2}}, "a module is built already"),
        (Classifier(), {"options": Options(dropout_at="x")}, "--dropout-at is for ONNX files"),
        ("model.onnx", {"weights": [NETWORKS]}, "an ONNX file holds its weights"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_is_expected(module, changes, said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The message says what was given and what is expected; nothing is written."""
    stated = {"name": "small", "example": torch.zeros(1, 1, 16, 16), "classes": CLASSES, "task": "classification"}
    with pytest.raises(SpecError, match=said):
        export(module, **{**stated, **changes}, into=tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_refusal_is_an_export_error_with_reason_site_and_remedy(tmp_path: Path) -> None:
    """Whoever catches `ExportError` catches it."""
    with pytest.raises(ExportError) as caught:
        export(
            nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), name="small", example=torch.zeros(1, 1, 16, 16),
            classes=CLASSES, task="classification", into=tmp_path / "models",
        )  # fmt: skip
    assert isinstance(caught.value, ExportRefused)
    assert "nothing in it is random" in caught.value.reason and caught.value.remedy


@pytest.mark.parametrize(
    ("goals", "said"),
    [
        ({"alpha": 0.9}, "alpha is 0.9; expected 0.001 to 0.5"),
        ({"samples": 1}, "samples is 1; expected 2 or more"),
        ({"method": "luck"}, "method is 'luck'; expected temperature, isotonic, venn-abers, best, none"),
    ],
)
def test_a_goal_out_of_range_is_refused_before_anything_is_read(goals, said) -> None:  # type: ignore[no-untyped-def]
    """As the command does."""
    with pytest.raises(CalibrationError, match=said):
        calibrate("none", data="nothing", repository="nowhere", **goals)


def test_importing_the_exporter_loads_no_torch() -> None:
    """Its names are loaded when they are asked for; what it lists is what it has."""
    script = (
        "import sys, equipoise_export\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'scipy'} & set(sys.modules)))\n"
        "print(all(callable(getattr(equipoise_export, name)) for name in equipoise_export.__all__))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:2] == ["[]", "True"]
