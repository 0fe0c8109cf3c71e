"""The proof accepts what is right and refuses mutants of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from equipoise_core.contract import Task
from equipoise_core.known_answers import KnownAnswers, known_image, known_masks
from equipoise_export.compile import compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.errors import ProofRefused
from equipoise_export.graph.marker import Call
from equipoise_export.graph.session import OnnxSampler
from equipoise_export.proof.parity import Proof, prove
from equipoise_export.proof.references import TorchNetwork
from onnx import helper, numpy_helper
from torch import nn

from ...support.graphs import contract
from ...support.networks import Classifier, UNet

LIVE = {"unet": ("bottleneck_dropout", "decoder_dropout.1"), "classifier": ("channel_dropout", "head_dropout")}


def test_a_proof_states_what_was_tested(compiled_unet: Compiled, compiled_classifier: Compiled) -> None:
    """Every property of the proof is there with its worst value, every site with its effect, all as JSON."""
    document = compiled_unet.proof.document()
    names = {check["name"] for check in document["checks"]}
    assert {"sum_p: same as the network", "volumes: same as the network", "variance over samples"} <= names
    assert {"batch-mates change nothing", "samples are independent", "chunks merge"} <= names
    assert [site["effect"] > 0 for site in document["sites"]] == [True, True]
    assert [site.bits for site in compiled_classifier.proof.sites] == [16, 16]


def test_a_proof_carries_answers_that_its_sampler_gives(compiled_unet: Compiled, compiled_classifier: Compiled) -> None:
    """Few enough to lie in the repository; another network's do not pass for them; an older proof has none."""
    for compiled in (compiled_unet, compiled_classifier):
        contract, document = compiled.contract, json.loads(json.dumps(compiled.proof.document()))
        assert len(json.dumps(document, indent=1)) < 60_000
        assert Proof.read(document) == compiled.proof
        assert Proof.read({k: v for k, v in document.items() if k != "known_answers"}).known_answers is None
        known = KnownAnswers.read(document["known_answers"], contract)
        masks = known_masks(contract, 0, contract.digest)[None]
        outputs = OnnxSampler(compiled.model)(known_image(contract, 0), masks)
        found = list(known.differences(contract, [0], range(4), outputs, contract.precision))
        assert all(each.passed and each.difference < 1e-5 for each in found)
        assert {each.output for each in found} == {*outputs, "variance", "mean difference"}
        moved = OnnxSampler(compiled.model)(known_image(contract, 2), masks)
        assert not all(each.passed for each in known.differences(contract, [0], range(4), moved, contract.precision))
    assert len(KnownAnswers.read(compiled_unet.proof.known_answers, compiled_unet.contract).points) > 100


def scaled_wrongly(model: onnx.ModelProto) -> None:
    """Kept units are not scaled by 1/(1 − p)."""
    for entry in model.graph.initializer:
        if list(entry.dims) == [256, 8]:
            entry.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(entry) > 0).astype(np.float32), entry.name))


def shared_over_samples(model: onnx.ModelProto) -> None:
    """All samples get the masks of the first."""
    graph = model.graph
    nodes = [
        helper.make_node("Slice", ["masks", "mutant_0", "mutant_1", "mutant_1"], ["mutant_first"]),
        helper.make_node("Shape", ["masks"], ["mutant_shape"]),
        helper.make_node("Expand", ["mutant_first", "mutant_shape"], ["mutant_masks"]),
    ]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == "masks":
                node.input[index] = "mutant_masks"
    for name, value in (("mutant_0", 0), ("mutant_1", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes + rest)


def site_left_out(model: onnx.ModelProto) -> None:
    """The last site's factors are all one."""
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    ones = numpy_helper.from_array(np.ones((256, 8), np.float32), "mutant_ones")
    model.graph.initializer.append(ones)
    gathers[-1].input[0] = "mutant_ones"


def sites_swapped(model: onnx.ModelProto) -> None:
    """Two sites read each other's bits."""
    (cast,) = (node for node in model.graph.node if node.input[0] == "masks")
    slices = [node for node in model.graph.node if node.op_type == "Slice" and node.input[0] == cast.output[0]]
    first, last = slices[0], slices[-1]
    width = 2
    starts = numpy_helper.from_array(np.array([0]), "mutant_start")
    ends = numpy_helper.from_array(np.array([width]), "mutant_end")
    model.graph.initializer.extend([starts, ends])
    last.input[1], last.input[2] = "mutant_start", "mutant_end"
    assert first is not last


@pytest.mark.parametrize("mutate", [scaled_wrongly, shared_over_samples, site_left_out, sites_swapped])
def test_mutants_are_refused(
    mutate: Callable[[onnx.ModelProto], None], compiled_classifier: Compiled, classifier: Classifier
) -> None:
    """A sampler that is wrong in one place does not pass."""
    mutant = onnx.ModelProto()
    mutant.CopyFrom(compiled_classifier.model)
    mutate(mutant)
    network = TorchNetwork(classifier, LIVE["classifier"], (Call(0), Call(1)))
    with pytest.raises(ProofRefused):
        prove(network, mutant, compiled_classifier.contract, torch.randn(1, 1, 16, 16).numpy())


def test_axes_of_one_length_that_are_mistaken_for_each_other_are_refused(unet: UNet) -> None:
    """The example is square; another size that were square as well would not show it."""
    draft = replace(contract(spatial=("X", "Y"), nominal=(16, 16), multiple=4), maximum=(64, 64))
    compiled = compile_sampler(unet, draft, torch.randn(2, 1, 16, 16))
    mutant = onnx.ModelProto()
    mutant.CopyFrom(compiled.model)
    graph = mutant.graph
    for node in graph.node:
        node.output[:] = ["mutant_sum" if name == "sum_p" else name for name in node.output]
        node.input[:] = ["mutant_sum" if name == "sum_p" else name for name in node.input]
    graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["mutant_rows"], start=2, end=3),
            helper.make_node("Slice", ["mutant_sum", "mutant_0", "mutant_rows", "mutant_3"], ["sum_p"]),
        ]
    )
    for name, value in (("mutant_0", 0), ("mutant_3", 3)):
        graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    network = TorchNetwork(unet, LIVE["unet"], (Call(0), Call(1)))
    with pytest.raises(ProofRefused, match="sum_p has shape"):
        prove(network, mutant, compiled.contract, torch.randn(1, 1, 16, 16).numpy())


def test_a_mutant_of_one_site_is_refused_by_its_name(compiled_unet: Compiled, unet: UNet) -> None:
    """Where one site alone makes the difference, the refusal names it."""
    mutant = onnx.ModelProto()
    mutant.CopyFrom(compiled_unet.model)
    site_left_out(mutant)
    network = TorchNetwork(unet, LIVE["unet"], (Call(0), Call(1)))
    with pytest.raises(ProofRefused) as caught:
        prove(network, mutant, compiled_unet.contract, torch.randn(1, 1, 16, 24).numpy())
    assert caught.value.site == "decoder_dropout.1"


def test_a_site_with_another_probability_is_refused(compiled_unet: Compiled, unet: UNet) -> None:
    """The network's own draws must have the contract's p."""
    first, second = compiled_unet.contract.sites
    contract = replace(compiled_unet.contract, sites=(replace(first, p=0.3), second))
    with pytest.raises(ProofRefused, match=r"draws 16 units with p = 0\.2"):
        prove(
            TorchNetwork(unet, LIVE["unet"], (Call(0), Call(1))),
            compiled_unet.model,
            contract,
            torch.randn(1, 1, 16, 24).numpy(),
        )


def test_an_output_that_is_not_finite_is_refused(compiled_unet: Compiled, unet: UNet) -> None:
    """NaN weights publish nothing."""
    import copy

    broken = copy.deepcopy(unet)
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    with pytest.raises(ProofRefused, match="not finite"):
        prove(
            TorchNetwork(broken, LIVE["unet"], (Call(0), Call(1))),
            compiled_unet.model,
            compiled_unet.contract,
            torch.randn(1, 1, 16, 24).numpy(),
        )


def test_every_site_drops_and_keeps_in_the_proof() -> None:
    """A site of one unit that is hardly ever dropped is dropped all the same: it would go unseen."""

    class Path(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(16, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = image.flatten(1)
            return self.line(x * x.new_empty((len(x), 1)).bernoulli_(0.999) if self.training else x)

    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(4, 4))
    compiled = compile_sampler(Path(), draft, torch.randn(2, 1, 4, 4))
    assert [site.p for site in compiled.contract.sites] == [0.001]
    assert next(c.value for c in compiled.proof.checks if c.name == "variance over samples") > 1e-4
