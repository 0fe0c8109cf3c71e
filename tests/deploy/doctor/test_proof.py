"""A serving machine that computes other numbers than the network's is found, and one that computes them is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
import torch
from equipoise_client.cli.main import main
from equipoise_core.contract import Task, load_contract
from equipoise_core.policy import Policy
from equipoise_core.stages import Stage
from equipoise_deploy.doctor.proof import proof
from equipoise_deploy.doctor.results import CheckResult, Status, Subject
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.compile import compile_first_pass, compile_sampler
from equipoise_export.publish.repository import publish_pair
from onnx import TensorProto, helper, numpy_helper

from ...support.exported import noise
from ...support.graphs import contract
from ...support.networks import Classifier
from ...support.repositories import ANYTHING, hold
from ...support.sampler_server import Outputs, SamplerServer, serving_samplers

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, compiled_unet) -> Path:
    """A segmentation, and a classifier with a first pass, whose last weights are as large as training makes them."""
    folder = tmp_path_factory.mktemp("proof") / "pairs"
    publish_pair(compiled_unet, folder)
    torch.manual_seed(0)
    classifier = Classifier()
    with torch.no_grad():
        classifier.head.weight *= 20
    draft = replace(contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16)), name="cls")
    example = noise(2, 1, 16, 16)
    compiled = compile_sampler(classifier, draft, example)
    publish_pair(compiled, folder, first_pass=compile_first_pass(classifier, compiled, example))
    return folder


def examined(server: SamplerServer) -> list[CheckResult]:
    with serving_samplers(server):
        return list(proof(Subject(server.repository, grpc=server.url)))


def of(results: list[CheckResult], sampler: str) -> CheckResult:
    (found,) = [each for each in results if sampler in each.found]
    return found


def spoilt(pairs: Path, spoil: Callable[[onnx.ModelProto], None]) -> list[CheckResult]:
    """By a server whose graphs were changed after they were read."""
    graphs = {path.parents[1].name: onnx.load(path) for path in pairs.glob("*/1/model.onnx")}
    for graph in graphs.values():
        spoil(graph)
    return examined(SamplerServer(pairs, graphs))


def tensor_float(model: onnx.ModelProto) -> None:
    """Weights with 10 bits of mantissa, round to even: what TensorFloat-32 makes of one factor of every product."""
    factors = {name for node in model.graph.node if node.op_type in PRODUCTS for name in node.input[1:2]}
    for entry in model.graph.initializer:
        if entry.name in factors and entry.data_type == TensorProto.FLOAT:
            bits = numpy_helper.to_array(entry).view(np.uint32).astype(np.uint64)
            bits = (bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000
            entry.CopyFrom(numpy_helper.from_array(bits.astype(np.uint32).view(np.float32), entry.name))


def half(model: onnx.ModelProto) -> None:
    """What goes into every product was rounded to half precision."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for index, node in enumerate(nodes):
        if node.op_type in PRODUCTS:
            cast = f"to half {index}", f"from half {index}"
            model.graph.node.append(helper.make_node("Cast", node.input[:1], cast[:1], to=TensorProto.FLOAT16))
            model.graph.node.append(helper.make_node("Cast", cast[:1], cast[1:], to=TensorProto.FLOAT))
            node.input[0] = cast[1]
        model.graph.node.append(node)


def test_a_right_server_passes(pairs):
    """Every sampler and first pass, alone and in batches."""
    server = SamplerServer(pairs)
    results = examined(server)
    assert {each.found.split()[0] for each in results} == {"small_sampler", "cls_sampler", "cls_first_pass"}
    assert all(each.status is Status.OK for each in results), results
    segmented = of(results, "small_sampler").found
    assert (
        "variance" in segmented and "volumes" in segmented and "CUDAExecutionProvider, fp32, N = 1 and 8" in segmented
    )
    assert {shape[0] for shape in server.shapes} == {1, 8}
    assert {shape[1] for shape in server.shapes if len(shape) == 3} == {20}, "as many samples as are served"


@pytest.mark.parametrize("spoil", [tensor_float, half])
def test_fewer_bits_are_found_with_the_likely_cause(pairs, spoil):
    """In the samplers of both tasks; also where the largest difference stays within the tolerance, by their mean."""
    results = spoilt(pairs, spoil)
    found, within = of(results, "small_sampler"), of(results, "cls_first_pass")
    assert found.status is Status.FAILURE and of(results, "cls_sampler").status is Status.FAILURE
    assert within.status is Status.WARNING and "not within single precision" in within.found
    assert "use_tf32" in within.remedy
    assert "expected" in found.found and "voxel" in found.found and "not ≤" in found.found
    assert "use_tf32 to 0" in found.remedy and "No execution plans" in found.remedy


def masks_of_the_first_sample(outputs: Outputs, given: Outputs) -> Outputs:
    if "probabilities" in outputs:
        outputs["probabilities"] = np.repeat(outputs["probabilities"][:, :1], outputs["probabilities"].shape[1], axis=1)
    return outputs


def variance_alone(outputs: Outputs, given: Outputs) -> Outputs:
    """Each sum within its tolerance, and the variance that follows of them is not."""
    samples = given["masks"].shape[1]
    return {**outputs, "sum_p": outputs["sum_p"] - 9e-5 * samples, "sum_p2": outputs["sum_p2"] + 9e-5 * samples}


def not_a_number(outputs: Outputs, given: Outputs) -> Outputs:
    return {name: values * np.nan for name, values in outputs.items()}


def one_image_of_a_batch(outputs: Outputs, given: Outputs) -> Outputs:
    """Another algorithm for a batch, which is wrong in its last image."""
    return {name: values if len(values) == 1 else np.roll(values, 1, axis=0) for name, values in outputs.items()}


def an_output_short(outputs: Outputs, given: Outputs) -> Outputs:
    return dict(list(outputs.items())[:-1])


@pytest.mark.parametrize(
    ("sampler", "spoil", "words"),
    [
        ("cls_sampler", masks_of_the_first_sample, "probabilities"),
        ("small_sampler", variance_alone, "variance, voxel"),
        ("small_sampler", not_a_number, "found nan"),
        ("cls_sampler", one_image_of_a_batch, "N = 8"),
        ("small_sampler", an_output_short, "no output volumes"),
    ],
)
def test_other_faults_are_found(pairs, sampler, spoil, words):
    """Whatever the fault, in what was answered."""

    def only(outputs: Outputs, given: Outputs) -> Outputs:
        return (
            spoil(outputs, given) if (given["image"].shape[2:] == (16, 16)) is (sampler != "small_sampler") else outputs
        )

    found = of(examined(SamplerServer(pairs, spoil=only)), sampler)
    assert found.status is Status.FAILURE and words in found.found, found


def test_chunks_of_a_policy_are_what_is_asked_for(pairs, tmp_path):
    """Another T may be computed by another algorithm."""
    copy = Path(shutil.copytree(pairs, tmp_path / "pairs"))
    digest = load_contract(copy / "small/1/contract.json").model_digest
    stages = tuple(Stage(samples, "sample_disagreement", 0.5) for samples in (3, 6))
    (copy / "small/1/policy.json").write_text(Policy(digest, "00" * 32, stages, ANYTHING).dumps())
    server = SamplerServer(copy)
    assert all(each.status is Status.OK for each in examined(server))
    assert 3 in {shape[1] for shape in server.shapes if len(shape) == 3}


def test_a_proof_without_answers_is_skipped_in_words(pairs, tmp_path):
    """An older pair. A proof of another file, or a broken one, is a failure."""
    copy = Path(shutil.copytree(pairs, tmp_path / "pairs"))
    path = copy / "small_sampler/1/proof.json"
    whole = json.loads(path.read_text())
    server = SamplerServer(copy)
    for document, status, words in (
        ({**whole, "known_answers": None}, Status.SKIPPED, "is older"),
        ({**whole, "model_digest": "00"}, Status.FAILURE, "about the file 00"),
        ({**whole, "known_answers": {"format": "equipoise-known-answers/9"}}, Status.FAILURE, "format"),
        ({**whole, "known_answers": {**whole["known_answers"], "points": "99999"}}, Status.FAILURE, "not answers"),
        ([], Status.FAILURE, "proof.json"),
    ):
        path.write_text(json.dumps(document))
        found = of(examined(server), "small_sampler")
        assert found.status is status and words in found.found and "export the same network again" in found.remedy
    path.unlink()
    assert of(examined(server), "small_sampler").status is Status.FAILURE


def test_a_server_that_cannot_be_asked_is_a_failure(pairs, tmp_path):
    """The reverse proxy lets nobody call samplers; another model is served; nobody is there."""
    refused = of(examined(SamplerServer(pairs, refuse=grpc.StatusCode.PERMISSION_DENIED)), "small_sampler")
    assert refused.status is Status.FAILURE and "Triton's own address" in refused.remedy
    other = tmp_path / "other"
    for path in sorted(pairs.rglob("*")):
        target = other / path.relative_to(pairs)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.symlink_to(path)
    config = other / "small/config.pbtxt"
    text = config.read_text()
    config.unlink()
    config.write_text(text.replace('\\"samples\\":20', '\\"samples\\":19').replace("digest", "no_digest"))
    with serving_samplers(SamplerServer(other)) as server:
        found = of(list(proof(Subject(pairs, grpc=server.url))), "small")
    assert found.status is Status.FAILURE and "--repository" in found.remedy
    gone = list(proof(Subject(pairs, grpc=server.url)))
    assert len(gone) == 2 and all(each.status is Status.FAILURE for each in gone)


def test_it_is_asked_for_by_an_option(pairs, capsys):
    """Which needs a server."""
    with serving_samplers(SamplerServer(pairs)) as server, pytest.raises(SystemExit):
        main(["doctor", "--repository", str(pairs), "--url", server.url, "--prove", "--json"])
    found = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["check"] == "proof"]
    assert [each["status"] for each in found] == ["ok"] * 3
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--repository", str(pairs), "--prove"])
    assert done.value.code == 2


HALVED = """
def _halve(run):
    def halved(self, request, session):
        response = run(self, request, session)
        tensors = response.output_tensors()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(t.name(), t.as_numpy().astype("float16").astype("float32")) for t in tensors]
        )
    return halved

TritonPythonModel._run = _halve(TritonPythonModel._run)
"""


@pytest.mark.slow
@pytest.mark.triton
def test_a_real_server_passes_until_it_answers_in_half(pairs, tmp_path):
    """Through Triton, with the configuration that it stages."""
    copy = Path(shutil.copytree(pairs, tmp_path / "pairs"))
    with TritonServer(copy, ports=Ports(0, 0, 0)) as server:
        results = list(proof(Subject(copy, grpc=server.grpc_url)))
        assert [each.status for each in results] == [Status.OK] * 3, results
        assert all("CPUExecutionProvider" in each.found for each in results)
    hold(copy / "small_sampler", HALVED)
    with TritonServer(copy, ports=Ports(0, 0, 0)) as server:
        found = of(list(proof(Subject(copy, grpc=server.grpc_url))), "small_sampler")
    assert found.status is Status.FAILURE and "another ONNX Runtime" in found.remedy
