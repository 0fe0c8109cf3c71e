"""What a user types, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from equipoise_core.contract import load_contract
from equipoise_export.command import app
from typer.testing import CliRunner

from ..support.networks import Classifier

NETWORKS = Path(__file__).parents[1] / "support" / "networks.py"
COMMON = [
    "--name",
    "small",
    "--task",
    "classification",
    "--input-shape",
    "1,16,16",
    "--classes",
    "a,b,c",
    "--sizes",
    "fixed",
]


@pytest.mark.slow
def test_a_network_is_published_with_its_proof(tmp_path: Path) -> None:
    """Weights, factory and contract come from the command line; one JSON object tells the result."""
    torch.manual_seed(0)
    torch.save({"state_dict": Classifier().state_dict()}, tmp_path / "weights.pt")
    arguments = [f"{NETWORKS}:Classifier", "--weights", str(tmp_path / "weights.pt"), "--into", str(tmp_path / "repo")]
    result = CliRunner().invoke(app, [*arguments, *COMMON, "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    contract = load_contract(tmp_path / "repo" / "small" / "1" / "contract.json")
    assert printed["digest"] == contract.digest
    assert [site.name for site in contract.sites] == ["channel_dropout", "head_dropout"]
    assert printed["samplers"] == [
        {"name": name, "proof": json.loads((tmp_path / "repo" / name / "1" / "proof.json").read_text())}
        for name in ("small_sampler", "small_first_pass")
    ]
    assert printed["samplers"][0]["proof"]["gpu"]["strays"] == []
    assert printed["cost"]["measured_gain"]["samples"] == 20 and printed["cost"]["measured_gain"]["ratio"] > 0


@pytest.mark.slow
def test_several_weights_are_published_as_one_ensemble(tmp_path: Path) -> None:
    """Each member is a sampler of its own with its own proof; the contract names them all."""
    for member in range(3):
        torch.manual_seed(member)
        torch.save(Classifier().state_dict(), tmp_path / f"{member}.pt")
    weights = [word for member in range(3) for word in ("--weights", str(tmp_path / f"{member}.pt"))]
    arguments = [f"{NETWORKS}:Classifier", *weights, *COMMON, "--into", str(tmp_path / "repo"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    names = ["small_sampler_1", "small_sampler_2", "small_sampler_3"]
    contract = load_contract(tmp_path / "repo" / "small" / "1" / "contract.json")
    assert [sampler.name for sampler in contract.samplers] == names
    assert len({sampler.digest for sampler in contract.samplers}) == 3
    proofs = [json.loads((tmp_path / "repo" / name / "1" / "proof.json").read_text()) for name in names]
    assert [s["proof"] for s in json.loads(result.stdout.strip().splitlines()[-1])["samplers"]] == proofs


@pytest.mark.slow
def test_a_member_given_twice_is_refused(tmp_path: Path) -> None:
    """By its bytes, and where the file was only written anew, by its answers."""
    state = Classifier().state_dict()
    torch.save(state, tmp_path / "a.pt")
    (tmp_path / "copy.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    torch.save({"state_dict": state}, tmp_path / "again.pt")
    for twin, said in (("copy.pt", "members of an ensemble must differ"), ("again.pt", "feign agreement")):
        weights = ["--weights", str(tmp_path / "a.pt"), "--weights", str(tmp_path / twin)]
        arguments = [f"{NETWORKS}:Classifier", *weights, *COMMON, "--into", str(tmp_path / "repo")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert said in result.output
        assert not (tmp_path / "repo").exists()


@pytest.mark.slow
def test_inspection_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites and predicted cost are printed; nothing is written."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [f"{NETWORKS}:Classifier", *COMMON, "--inspect", "--json"])
    printed = json.loads(result.stdout.strip().splitlines()[-1])
    assert [(site["name"], site["kind"], site["shape"]) for site in printed["sites"]] == [
        ("channel_dropout", "channel", [16]),
        ("head_dropout", "element", [16]),
    ]
    assert printed["cost"]["predicted_gain"]["20"] > 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing_here.py:net"], "there is no file nothing_here.py"),
        (["networks"], "expected package.module:callable or file.py:callable"),
        ([f"{NETWORKS}:Absent"], "has no Absent"),
        ([f"{NETWORKS}:Classifier", "--arg", "classes"], "expected key=value"),
        ([f"{NETWORKS}:Classifier", "--arg", "colour=1"], "unexpected keyword argument 'colour'"),
        ([f"{NETWORKS}:Classifier", "--dropout-at", "x"], "--dropout-at is for ONNX files"),
        ([f"{NETWORKS}:Classifier", "--weights", "none.pt"], "there is no file none.pt"),
    ],
)
def test_unusable_arguments_are_refused_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    """The message says what was given and what is expected; nothing is written."""
    result = CliRunner().invoke(app, [*arguments, *COMMON, "--into", str(tmp_path / "repo")])
    assert result.exit_code == 1
    assert said in result.output
    assert not (tmp_path / "repo").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """The message names what is missing and what has another shape."""
    torch.save(Classifier(classes=5).state_dict(), tmp_path / "weights.pt")
    arguments = [f"{NETWORKS}:Classifier", "--weights", str(tmp_path / "weights.pt"), "--into", str(tmp_path / "repo")]
    result = CliRunner().invoke(app, [*arguments, *COMMON])
    assert result.exit_code == 1
    assert "head.weight (5, 16) instead of (3, 16)" in result.output
