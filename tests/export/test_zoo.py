"""Networks that people really have: each exports, proves itself, and samples as a PyTorch loop does.

`make zoo` installs the packages they come from (see `zoo.py`) and runs these; `make test-all` runs ten of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Activation, Contract, Task, load_contract
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.preprocessing import Preprocessing
from equipoise_core.steps import ZScore
from equipoise_export.capture.prepare import prepare
from equipoise_export.command import app
from equipoise_export.compile import compile_sampler
from equipoise_export.graph.session import session
from equipoise_export.options import Options, Sizes
from equipoise_export.proof.references import TorchNetwork
from onnx import numpy_helper
from typer.testing import CliRunner

from ..support.zoo import CHOSEN, ZOO_NETWORKS, Animal, awake, torchvision_model
from .test_compile import permutation_p

pytestmark = pytest.mark.timeout(1200)
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def contract_of(name: str, animal: Animal) -> Contract:
    size = animal.shape[1:]
    axes: tuple[int | str, ...] = {2: ("H", "W"), 3: ("X", "Y", "Z")}[len(size)] if animal.dynamic else size
    return Contract(
        name, Task(animal.task), Activation.SOFTMAX, tuple(map(str, range(animal.classes))), animal.shape[0], axes, size,  # noqa: E501
        size, Preprocessing((ZScore(),), multiple=animal.multiple), (),
    )  # fmt: skip


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in CHOSEN else [pytest.mark.exhaustive]) for name in ZOO_NETWORKS]
)
def test_a_network_of_the_zoo_is_exported_and_proven(name: str) -> None:
    """The proof passes; samples of the sampler and of Monte Carlo dropout are one distribution."""
    animal = ZOO_NETWORKS[name]
    torch.manual_seed(0)
    network = awake(animal.make(), torch.randn(4, *animal.shape))
    draft = contract_of(name, animal)
    options = Options(output=animal.output, sizes=Sizes.DYNAMIC)
    compiled = compile_sampler(
        network, draft, torch.randn(2, *animal.shape), Options(output=animal.output, sizes=Sizes.DYNAMIC)
    )
    assert compiled.contract.spatial == draft.spatial
    assert animal.sites in (None, len(compiled.contract.sites))
    assert not compiled.placement.strays and not compiled.placement.off_tensorrt

    image = torch.randn(1, *animal.shape)
    layout = mask_layout(compiled.contract, draft.nominal)
    per_sample = "probabilities" if draft.task is Task.CLASSIFICATION else "volumes"
    running = session(compiled.model)
    prepared = prepare(network, draft, torch.randn(2, *animal.shape), options)
    plain = TorchNetwork(prepared.network, prepared.active, ())
    torch.manual_seed(1)

    def compared(first: int, batches: int) -> float:
        """p of `batches` times 60 samples of each kind."""
        served, looped = [], []
        for start in range(first, first + 60 * batches, 60):
            masks = draw_masks(layout, 1, compiled.contract.digest, start, 60)[None]
            served.append(running.run([per_sample], {"image": image.numpy(), "masks": masks})[0][0])
            with plain.ready():
                logits = torch.stack([prepared.network(image)[0] for _ in range(60)]).double()
            p = torch.softmax(logits, 1)
            looped.append(p.flatten(2).sum(-1).numpy() if draft.task is Task.SEGMENTATION else p.numpy())
        return permutation_p(np.concatenate(served), np.concatenate(looped))

    # Of 50 networks that are right, one in four runs has one below .005: fresh samples, four times as many, decide.
    assert compared(0, 1) > 0.005 or compared(60, 4) > 0.005


def with_random_weights(path: Path) -> onnx.ModelProto:
    """The `light` models hold constants for weights, under which all classes are equal: random ones instead."""
    model = onnx.load(path)
    generator = np.random.default_rng(0)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in constants:
            shape = tuple(int(size) for size in constants[node.input[0]])
            spread = np.sqrt(2 / max(1, int(np.prod(shape[1:])))) if len(shape) > 1 else 0.01
            array = (generator.standard_normal(shape) * spread).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


@pytest.mark.zoo
@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "sites"), [("squeezenet", 1), ("inception_v1", 1), ("bvlc_alexnet", 2), ("vgg19", 2)])
def test_onnx_graphs_with_dropout_nodes_become_samplers(name: str, sites: int) -> None:
    """As many sites as Dropout nodes, proven; vgg19's 144 M weights need 6 GB."""
    size = (224, 224)
    classes = tuple(map(str, range(1000)))
    preprocessing = Preprocessing((ZScore(),))
    draft = Contract(
        name, Task.CLASSIFICATION, Activation.SOFTMAX, classes, 3, size, size, size, preprocessing, ()
    )  # fmt: skip
    example = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    compiled = compile_sampler(with_random_weights(LIGHT / f"light_{name}.onnx"), draft, example)
    assert len(compiled.contract.sites) == sites
    assert not any(site.dead for site in compiled.proof.sites)


VENDOR = {
    "resnet18": "layer4*",
    "mobilenet_v2": "features.18*",
    "vision_transformer": "*mlp*",
    "smp_deeplabv3plus": "decoder.*,decoder/*",
}


@pytest.mark.zoo
@pytest.mark.exhaustive
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
@pytest.mark.parametrize("name", VENDOR)
@pytest.mark.filterwarnings("ignore")
def test_dropout_is_put_into_files_of_well_known_networks(name: str, dynamo: bool, tmp_path: Path) -> None:
    """Exported by torch for one image, in inference mode; the command takes them with the names of their modules."""
    known = ZOO_NETWORKS.get(name)
    animal = known or Animal(lambda: torchvision_model(name, num_classes=3), "classification", 3, (3, 64, 64))
    torch.manual_seed(0)
    network = awake(animal.make(), torch.randn(4, *animal.shape)).eval()
    path = tmp_path / "vendor.onnx"
    options: dict[str, Any] = {"external_data": False} if dynamo else {"opset_version": 17}
    torch.onnx.export(network, (torch.randn(1, *animal.shape),), str(path), dynamo=dynamo, verbose=False, **options)
    result = CliRunner().invoke(
        app,
        [
            str(path), "--name", "vendor", "--task", animal.task, "--input-shape", ",".join(map(str, animal.shape)),
            "--classes", ",".join(map(str, range(animal.classes))), "--dropout-at", VENDOR[name], "--p", "0.1",
            "--into", str(tmp_path / "repo"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert load_contract(tmp_path / "repo" / "vendor" / "1" / "contract.json").sites
