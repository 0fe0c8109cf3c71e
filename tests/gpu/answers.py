"""Is it right? Answers and where they are computed; against PyTorch, mask by mask and as a distribution."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from equipoise_core.contract import Contract, Precision, Task
from equipoise_core.masks import draw_masks, mask_layout
from equipoise_core.tolerance import TOLERANCES
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.readiness import check_readiness, synthetic_image
from equipoise_deploy.serving.server import TritonServer

from ..support.asking import ask
from ..support.steps import Note, Wrong
from .target import CUDA, REPOSITORY, Target, phrases_in, placement

SPREAD = {Precision.FP32: 0.02, Precision.FP16: 0.1}
"""How far the mean variance over samples may be from PyTorch's under the same masks, as a share of it."""
TRACED = {"pneumonia": (28, 28), "nuclei": (32, 48), "hippocampus": (16, 24, 16)}
"""Sizes that are quickly exported; what is exported takes any."""
OUTPUTS = ("mean", "variance", "route", "record")


def smoke(target: Target, note: Note) -> str:
    """Every reference model answers; nothing in the log or in a profile says that it was not as configured."""
    log: list[str] = []
    with TritonServer(REPOSITORY, ports=Ports(0, 0, 0), on_log=log.append) as server:
        check_readiness(server.grpc_url, server.models)
        with triton.InferenceServerClient(server.grpc_url) as client:
            for name in server.models:
                answer = ask(client, name, {"image": synthetic_image(target.contract(name))}, OUTPUTS)
                record = json.loads(answer["record"].ravel()[0])
                note(name, {"route": answer["route"].ravel()[0].decode(), "computed by": record["computed_by"]})
                if not all(np.isfinite(answer[each]).all() for each in ("mean", "variance")):
                    raise Wrong(f"{name}: an answer is not finite")
                if (record["computed_by"]["provider"] == CUDA) != target.cuda:
                    raise Wrong(f"{name}: its record states {record['computed_by']['provider']}")
    found = phrases_in(log)
    note("log", {"lines": len(log), "without an engine": found})
    if found:
        raise Wrong(f"cuDNN has no engine within the options: {found[0]}")
    with tempfile.TemporaryDirectory() as scratch:
        for name in target.models:
            contract = target.contract(name)
            session = target.session(target.sampler(name), profile=Path(scratch) / name)
            session.run(None, feeds_of(contract, 1, contract.samples, contract.nominal))
            where = placement(Path(session.end_profiling()))
            note(f"{name}, nodes", where)
            if target.cuda and (where["copies"] or not where["nodes"].get(CUDA)):
                raise Wrong(f"{name}: {where['nodes']} with {where['copies']} copies between CPU and GPU")
    return f"{len(log)} lines of log; all models answer"


def feeds_of(contract: Contract, images: int, samples: int, size: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Noise, and masks as they are drawn in service."""
    image = np.random.default_rng(0).standard_normal((images, contract.channels, *size)).astype(np.float32)
    layout = mask_layout(contract, size)
    masks = np.stack([draw_masks(layout, seed, contract.model_digest, 0, samples) for seed in range(images)])
    return {"image": image, "masks": masks}


def parity(target: Target, note: Note) -> str:
    """The same masks in both: sampler on the device, single and half, against PyTorch in single on the CPU."""
    import torch
    from equipoise_export.compile import compile_unproven
    from equipoise_export.graph.storage import store
    from equipoise_export.options import Options, Sizes
    from equipoise_export.proof import definitions
    from equipoise_export.proof.parity import Proving
    from equipoise_lab.reference.build import draft_contract
    from equipoise_lab.reference.specs import REFERENCES

    torch.manual_seed(0)
    wrong = []
    for name in target.models:
        draft = replace(draft_contract(REFERENCES[name]), precision=Precision.FP16, nominal=TRACED[name])
        example = torch.randn(2, draft.channels, *draft.nominal)
        half, network = compile_unproven(REFERENCES[name].trained(), draft, example, Options(sizes=Sizes.DYNAMIC))
        assert half.single is not None
        size = draft.nominal if target.small else target.contract(name).nominal
        for compilation in (half.single, half):
            contract = compilation.contract
            model, weights = store(compilation.model)
            on_device = partial(target.session, precision=contract.precision)
            proving = Proving(network, model, contract, compilation.halves_by_name(), weights, on_device)
            images = np.random.default_rng(1).standard_normal((2, draft.channels, *size)).astype(np.float32)
            packed = proving.masks(images, 0)[1]
            got = proving.sampler(images, packed)
            with network.ready():
                p = np.stack([[proving.network(image[None], mask) for mask in masks]
                              for image, masks in zip(images, packed, strict=True)])  # fmt: skip
            expected = definitions.outputs(contract, images, p)
            worst = {key: float(proving.difference(key, got[key], expected[key]).max()) for key in expected}
            ours, theirs = (_variance(contract, each, proving.samples) for each in (got, expected))
            ratio = float(ours.mean() / theirs.mean())
            limit = TOLERANCES[contract.precision]
            label = f"{name}, {contract.precision.value}"
            note(label, {**worst, "allowed": limit, "variance over samples, of PyTorch's": ratio})
            if max(worst.values()) > limit or not abs(ratio - 1.0) <= SPREAD[contract.precision]:
                wrong.append(label)
    if wrong:
        raise Wrong(f"not as PyTorch under the same masks: {'; '.join(wrong)}")
    return "within tolerance, variance included"


def _variance(contract: Contract, outputs: dict[str, np.ndarray], samples: int) -> np.ndarray:
    """Over samples, of each probability."""
    if contract.task is Task.CLASSIFICATION:
        return np.asarray(outputs["probabilities"].var(axis=1))
    return np.asarray(outputs["sum_p2"] / samples - (outputs["sum_p"] / samples) ** 2)


def distribution(target: Target, note: Note) -> str:
    """400 samples of each, with masks of their own: a permutation test cannot tell sampler and PyTorch apart."""
    from ..support.mc_dropout import DRAWS, LEVEL, one_sample_each, samples_of_pytorch
    from ..support.permutation import compare
    from .target import torch_device

    wrong = []
    for name in target.models:
        contract, run, smallest = target.contract(name), target.runner(name), []
        for draw in range(DRAWS):
            ours = one_sample_each(run, contract, draw)
            smallest.append(compare(ours, samples_of_pytorch(contract, draw, None, torch_device())).smallest)
            if smallest[-1] > LEVEL:
                break
        else:
            wrong.append(name)
        note(name, {"p": max(smallest), "told apart below": LEVEL})
    if wrong:
        raise Wrong(f"told apart from PyTorch in {DRAWS} independent draws: {', '.join(wrong)}")
    return f"not told apart from PyTorch on {torch_device()}"


def threads() -> int:
    """Of everything on the CPU: all cores that this process may use."""
    return len(os.sched_getaffinity(0))
