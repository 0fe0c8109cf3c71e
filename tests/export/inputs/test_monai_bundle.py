"""MONAI bundle directories, made by MONAI itself, export with what they state about themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from equipoise_core.contract import Task, load_contract
from equipoise_core.steps import parse_steps
from equipoise_export.command import app
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.inputs.monai_bundle import read_bundle
from typer.testing import CliRunner

pytestmark = pytest.mark.slow  # exports of bundles

bundles = pytest.importorskip("monai.bundle")

UNET = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": [4, 8],
    "strides": [2],
    "dropout": "@dropout",
}
IMAGE = {
    "type": "image",
    "format": "hounsfield",
    "modality": "CT",
    "num_channels": 1,
    "spatial_shape": [16, 24],
    "dtype": "float32",
    "value_range": [0, 1],
    "is_patch_data": True,
    "channel_def": {"0": "image"},
}
ANSWER = {**IMAGE, "format": "segmentation", "num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}
STEPS = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RA"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 2.0], "mode": "bilinear"},
]
WINDOW = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1}


def make(
    folder: Path, *steps: dict[str, Any], dropout: float = 0.2, as_yaml: bool = False, **changes: Any
) -> tuple[Path, torch.nn.Module]:
    """A bundle as `monai.bundle init_bundle` writes it, in the zoo's own shape, with a real checkpoint."""
    torch.manual_seed(0)
    from monai.networks.nets import UNet

    network = UNet(2, 1, 2, (4, 8), (2,), dropout=dropout)
    inference = {
        "bundle_root": ".",
        "dropout": dropout,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": UNET,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": [*STEPS, *steps]},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
        },
        **changes,
    }
    metadata = {
        "version": "0.1.0",
        "monai_version": "1.6.1",
        "task": "Spleen segmentation",
        "network_data_format": {"inputs": {"image": IMAGE}, "outputs": {"pred": ANSWER}},
    }
    bundles.init_bundle(folder, network=network, metadata_str=metadata, inference_str=inference)
    if as_yaml:
        (folder / "configs" / "inference.json").unlink()
        (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(inference), encoding="utf-8")
    return folder, network


def export(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("as_yaml", [False, True])
def test_a_bundle_says_what_a_contract_needs(tmp_path: Path, as_yaml: bool) -> None:
    """Size, classes, modality, spacing, orientation and normalisation come from it; MONAI accepts it as its own."""
    folder, _ = make(tmp_path / "spleen-ct", WINDOW, as_yaml=as_yaml)
    configs = folder / "configs"
    bundles.verify_net_in_out(
        "network_def", str(configs / "metadata.json"), str(next(configs.glob("inference.*"))), device="cpu"
    )
    stated = read_bundle(folder).stated()
    assert (stated.name, stated.task, stated.shape) == ("spleen_ct", Task.SEGMENTATION, (1, 16, 24))
    assert (stated.classes, stated.modalities, stated.orientation) == (("background", "spleen"), ("CT",), "RA")
    assert stated.spacing == ((1.485, 1.515), (1.98, 2.02))
    assert stated.preprocess == parse_steps("scale_range:-57,164")


def test_a_bundle_is_published_with_its_weights(tmp_path: Path) -> None:
    """Nothing but the repository has to be stated; what the sampler computes is what the bundle's network computes."""
    folder, network = make(tmp_path / "spleen", WINDOW)
    result = export(str(folder), "--into", str(tmp_path / "repo"), "--multiple", "2")
    assert result.exit_code == 0, result.output
    contract = load_contract(tmp_path / "repo" / "spleen" / "1" / "contract.json")
    assert contract.classes == ("background", "spleen")
    assert contract.preprocessing.steps == parse_steps("scale_range:-57,164")
    image = np.random.default_rng(0).random((1, 1, 16, 24)).astype(np.float32)
    kept = np.full((1, 1, -(-sum(np.prod(s.units({"H": 16, "W": 24})) for s in contract.sites) // 8)), 255, np.uint8)
    got = OnnxSampler(tmp_path / "repo" / "spleen_sampler" / "1" / "model.onnx")(image, kept)["sum_p"]
    for part in network.modules():
        if isinstance(part, torch.nn.Dropout):
            part.register_forward_hook(lambda layer, inputs, output: output / (1 - layer.p))
    with torch.no_grad():
        expected = torch.softmax(network.eval()(torch.from_numpy(image)), 1).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_is_stated_on_the_command_line_wins(tmp_path: Path) -> None:
    """Explicit options and overrides of the configuration come before what the bundle says."""
    folder, _ = make(tmp_path / "spleen", WINDOW)
    result = export(
        str(folder), "--name", "organ", "--classes", "none,some", "--arg", "network_def.dropout=0.4",
        "--modality", "MR", "--normalisation", "zscore", "--into", str(tmp_path / "repo"), "--multiple", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    contract = load_contract(tmp_path / "repo" / "organ" / "1" / "contract.json")
    assert (contract.classes, contract.modalities) == (("none", "some"), ("MR",))
    assert contract.preprocessing.steps == parse_steps("zscore")
    assert "steps differ from the bundle's own transforms by" in " ".join(result.output.split())
    assert {site.p for site in contract.sites} == {0.4}


def test_a_bundle_without_dropout_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """The refusal names the argument of its network; --p switches layers on that are there with p = 0."""
    folder, _ = make(tmp_path / "spleen", WINDOW, dropout=0.0)
    refused = export(str(folder), "--into", str(tmp_path / "repo"), "--multiple", "2")
    assert refused.exit_code == 1
    assert "--arg network_def.dropout=0.2" in refused.output
    printed = export(str(folder), "--inspect", "--json", "--p", "0.1", "--multiple", "2")
    assert {site["p"] for site in json.loads(printed.stdout.strip().splitlines()[-1])["sites"]} == {0.1}


def test_the_proof_runs_raw_images_through_the_bundles_own_transforms(tmp_path: Path) -> None:
    """Clipped as MONAI clips, references and expressions evaluated, nested and disabled transforms as by MONAI."""
    steps = [
        {"_target_": "Compose", "transforms": [{**WINDOW, "clip": "$not False", "a_min": "@lowest"}]},
        {"_target_": "NormalizeIntensityd", "keys": ["image"], "nonzero": True},
        {"_target_": "GaussianSmoothd", "keys": "image", "_disabled_": True},
    ]
    folder, _ = make(tmp_path / "spleen", *steps, lowest=-57)
    result = export(str(folder), "--into", str(tmp_path / "repo"), "--multiple", "2")
    assert result.exit_code == 0, result.output
    contract = load_contract(tmp_path / "repo" / "spleen" / "1" / "contract.json")
    assert contract.preprocessing.steps == parse_steps("scale_range:-57,164,clip zscore:nonzero")
    proof = json.loads((tmp_path / "repo" / "spleen_sampler" / "1" / "proof.json").read_text(encoding="utf-8"))
    (check,) = (each for each in proof["checks"] if each["name"].startswith("preprocessing of raw images"))
    assert check["passed"] and check["value"] < 1e-5
    assert "preprocessing of raw images" in " ".join(result.output.split())


SMOOTH = {"_target_": "GaussianSmoothd", "keys": "image"}


@pytest.mark.parametrize(
    ("steps", "changes", "arguments", "said"),
    [
        ([SMOOTH], {}, [], "GaussianSmooth (transform 5) is no step of a contract"),
        ([WINDOW, SMOOTH], {}, [], "State what happens to intensities with --preprocess"),
        ([], {"preprocessing": "$monai.transforms.Compose([])"}, [], "is no list of transforms that can be read"),
        ([{**WINDOW, "a_min": "$1 / 0"}], {}, [], "cannot be evaluated"),
        ([WINDOW], {}, ["--arg", "dropuot=1"], "has no dropuot; try network_def.dropuot"),
        ([WINDOW], {"network_def": {"_target_": "UNet"}}, [], "network_def cannot be built"),
        ([WINDOW], {"network_def": {"_target_": "Compose"}}, [], "expected a torch.nn.Module"),
        ([WINDOW], {}, ["--arg", "network_def.channels=[4,16]"], "does not fit the network"),
    ],
)
def test_an_unusable_bundle_is_refused_with_the_reason(
    steps: list[dict[str, Any]], changes: dict[str, Any], arguments: list[str], said: str, tmp_path: Path
) -> None:
    """Nothing is guessed about intensities, and nothing is written."""
    folder, _ = make(tmp_path / "spleen", *steps, **changes)
    result = export(str(folder), "--into", str(tmp_path / "repo"), "--multiple", "2", *arguments)
    assert result.exit_code == 1
    assert said in result.output
    assert not (tmp_path / "repo").exists()


def test_a_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    """The message says what a bundle holds; without weights it says where they come from."""
    assert "is no MONAI bundle" in export(str(tmp_path), "--inspect").output
    folder, _ = make(tmp_path / "spleen", WINDOW)
    (folder / "models" / "model.pt").unlink()
    assert "download_large_files" in export(str(folder), "--inspect").output
