"""The export's proof, repeated on the serving machine: does each sampler there still compute the network's answers?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from equipoise_client.transport import connect
from equipoise_core.budget import at_once
from equipoise_core.contract import Contract, ContractError, Precision, parse_contract
from equipoise_core.known_answers import IMAGES, MEAN, SAMPLES, Difference, KnownAnswers, known_image, known_masks
from equipoise_core.loading import load_model
from equipoise_core.moments import sampler_outputs
from equipoise_core.tolerance import ROUNDED, precision_of
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ..errors import DeployError
from ..repository import CONTRACT_PARAMETER, public_models
from ..serving.computing import computed_by
from .results import CheckResult, Subject, failure, ok, skipped, warning

_TIMEOUT = 600.0  # seconds for one run: a large volume on a CPU takes long
_PUBLISH = "export the same network again into its repository, which renews the proof and keeps the policy"
_STOP = "let it answer for no patient until it passes. "


@dataclass(frozen=True)
class Asked:
    """One sampler, or first pass, of a running server.

    Attributes:
        contract: of its images and masks.
        samples: T of its requests.
        at_most: images per request.
        provider, precision: that compute it, by its configuration.
    """

    name: str
    digest: str
    contract: Contract
    samples: int
    at_most: int
    provider: str
    precision: Precision


def proof(subject: Subject) -> Iterator[CheckResult]:
    """Every sampler, asked directly, gives the answers of the original network that lie beside its file."""
    assert subject.grpc is not None
    try:
        names = public_models(subject.repository)
    except DeployError as error:
        yield failure("proof", str(error), "give what is served with --repository")
        return
    with connect(subject.grpc, None) as client:
        for name in names:
            try:
                asked = list(_asked(client, subject.repository, name))
            except (ContractError, DeployError, InferenceServerException, OSError) as error:
                yield failure("proof", f"{name}: {error}", "give with --repository what this server serves")
                continue
            for each in asked:
                yield _repeated(client, subject.repository, each)


def _asked(client: Any, repository: Path, name: str) -> Iterator[Asked]:
    """The samplers of a public model, with requests as it makes them. Raises what says that it cannot be told."""
    parameters = client.get_model_config(name, client_timeout=10).config.parameters
    chunk = parameters["chunk"].string_value if "chunk" in parameters else ""
    model = load_model(repository / name / "1", int(chunk) if chunk else None)
    served = parse_contract(json.loads(parameters[CONTRACT_PARAMETER].string_value)).model_digest
    if served != model.contract.model_digest:
        raise ContractError(
            f"the server serves the model {served[:12]}, in {repository} is {model.contract.model_digest[:12]}"
        )
    for file in model.contract.files:
        config = client.get_model_config(file.name, client_timeout=10).config
        by = computed_by(config)
        contract = model.contract if file in model.contract.samplers else model.contract.of_first_pass
        samples = -(-model.chunk // len(contract.samplers)) if contract.stochastic else 1
        images = min(at_once(contract, contract.nominal, samples), config.max_batch_size)
        precision = precision_of(contract.precision, by["provider_options"])
        yield Asked(file.name, file.digest, contract, samples, images, by["provider"], precision)


def _repeated(client: Any, repository: Path, asked: Asked) -> CheckResult:
    try:
        document = json.loads((repository / asked.name / "1" / "proof.json").read_text(encoding="utf-8"))
        about, stored = document.get("model_digest"), document.get("known_answers")
        if about != asked.digest:
            raise ValueError(f"it is about the file {about}")
        if stored is None:
            return skipped("proof", f"{asked.name}: its proof is older and holds no answers to repeat", _PUBLISH)
        known = KnownAnswers.read(stored, asked.contract)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return failure("proof", f"{asked.name}: proof.json: {error}", _PUBLISH)
    worst: dict[str, Difference] = {}
    images = IMAGES[asked.contract.task]
    runs: list[Sequence[int]] = [[number] for number in range(images)]
    if asked.at_most > 1:  # a GPU may compute a batch by other algorithms than one image
        runs.append([number % images for number in range(asked.at_most)])
    for numbers in runs:
        for samples in _chunks(asked):
            try:
                found = _run(client, asked, known.drawn_for, numbers, samples)
                for each in known.differences(asked.contract, numbers, samples, found, asked.precision):
                    if not each.passed:
                        shape = f"N = {len(numbers)}, T = {len(samples)}, {asked.provider}, {asked.precision.value}"
                        return failure("proof", f"{asked.name} ({shape}): {each}", _STOP + _causes(asked))
                    if each.output not in worst or each.difference > worst[each.output].difference:
                        worst[each.output] = each
            except InferenceServerException as error:
                return failure(
                    "proof",
                    f"{asked.name} cannot be asked: {error.message()}",
                    "give Triton's own address with --url, on its machine: the reverse proxy lets nobody call samplers",
                )
            except (ValueError, IndexError) as error:
                return failure("proof", f"{asked.name}: {error}", _PUBLISH)
    listed = ", ".join(f"{each.output} {each.difference:.1e} ≤ {each.limit:.1e}" for each in worst.values())
    sizes = " and ".join(str(number) for number in sorted({len(numbers) for numbers in runs}))
    by = f"{asked.provider}, {asked.precision.value}, N = {sizes}, T = {asked.samples}"
    if asked.precision is Precision.FP32 and worst[MEAN].difference > ROUNDED:
        near = f"{asked.name} stays within the tolerance, but not within single precision: {listed} ({by})"
        return warning("proof", near, _causes(asked))
    return ok("proof", f"{asked.name} gives the network's answers: {listed} ({by})")


def _chunks(asked: Asked) -> list[list[int]]:
    """The numbers of the samples of each request: as many as are served, and all masks in one of them at least."""
    each = asked.samples
    if not asked.contract.stochastic:
        return [[0]]
    return [[(first + i) % SAMPLES for i in range(each)] for first in range(0, SAMPLES, each)]


def _run(
    client: Any, asked: Asked, drawn_for: str, numbers: Sequence[int], samples: Sequence[int]
) -> dict[str, NDArray[np.float32]]:
    tensors: dict[str, NDArray[Any]] = {"image": np.concatenate([known_image(asked.contract, i) for i in numbers])}
    if asked.contract.stochastic:
        masks = [known_masks(asked.contract, number, drawn_for) for number in numbers]
        tensors["masks"] = np.ascontiguousarray(np.stack(masks)[:, samples])
    types = {"image": "FP32", "masks": "UINT8"}
    inputs = [
        triton.InferInput(name, tensor.shape, types[name]).set_data_from_numpy(tensor)
        for name, tensor in tensors.items()
    ]
    names = sampler_outputs(asked.contract)
    wanted = [triton.InferRequestedOutput(name) for name in names]
    answer = client.infer(asked.name, inputs, outputs=wanted, client_timeout=_TIMEOUT)
    return {name: array for name in names if (array := answer.as_numpy(name)) is not None}


def _causes(asked: Asked) -> str:
    if asked.provider == "CPUExecutionProvider":
        return "Likely another ONNX Runtime than the export's, or damaged memory: compare versions, test the memory"
    engine = "search Triton's log for 'No execution plans' and 'No valid engine' (another cuDNN engine)"
    if asked.precision is Precision.FP16:
        return f"Likely half precision loses too much on this device: serve the export in fp32; and {engine}"
    return (
        "Likely TensorFloat-32 (set use_tf32 to 0 in the sampler's config.pbtxt, and NVIDIA_TF32_OVERRIDE=0), or half "
        f"precision (trt_fp16_enable, precision_mode); {engine}"
    )
