"""Ready means that every public model answers: Triton itself says that it is ready even when a model's process is dead.

Each model gets one synthetic image through the public gRPC interface; its answer has to be finite and, where the model
draws samples, to vary between them.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from equipoise_client.images.synthetic import synthetic_image
from equipoise_client.prediction import Priority
from equipoise_client.transport import connect
from equipoise_core.contract import Contract, ContractError, parse_contract
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ..errors import NotReadyError
from ..ports import LOOPBACK, fetch
from ..repository import CONTRACT_PARAMETER
from .settings import PROBE_SAMPLES

PROBE_ID = "equipoise-probe"
"""Request id of health probes; `model.py` knows it too."""

_SATURATED = 1e-6
"""p̄(1 − p̄) up to which single precision may hide how samples differ."""

_SAMPLES = 2  # the fewest that can differ
_OUTPUTS = ("mean", "variance")
Answers = queue.SimpleQueue[tuple[str, Any, Exception | None]]


@dataclass(frozen=True)
class Probe:
    """One model's answer to the synthetic image.

    Attributes:
        model: name of the public model.
        seconds: until the answer was there, all models being asked at once.
        variance: the largest over classes and voxels; 0 for a deterministic model.
        varies: whether its samples can differ at all.
    """

    model: str
    seconds: float
    variance: float
    varies: bool = True

    @property
    def words(self) -> str:
        """The variance as a person reads it."""
        if self.variance:
            return f"{self.variance:.2g}"
        return "0: its probabilities are 0 and 1 there" if self.varies else "deterministic"


def answers_ready(http_port: int) -> bool:
    """Whether Triton itself says that every model is loaded."""
    return fetch(f"{LOOPBACK}:{http_port}", "/v2/health/ready", 5.0) is not None


def answers_metrics(address: str, port: int) -> bool:
    """Whether the last port that Triton opens is open: where it cannot, it ends, after it has said that it is ready."""
    return fetch(f"{address}:{port}", "/metrics", 5.0) is not None


def check_readiness(grpc_url: str, models: Sequence[str], timeout: float = 60.0) -> tuple[Probe, ...]:
    """Probes all public models at once. Raises NotReadyError that names all whose answer is wrong.

    Args:
        timeout: seconds for all of them together.
    """
    answers: Answers = queue.SimpleQueue()
    begin = time.monotonic()
    probes, contracts, wrong = [], {}, {}
    with connect(grpc_url, None) as client:
        for model in models:
            try:
                contract, samples = _known(client, model)
                _send(client, model, _inputs(contract, samples), answers, client_timeout=timeout)
                contracts[model] = contract
            except (NotReadyError, ContractError, ValueError) as unknown:
                wrong[model] = str(unknown)
        for _ in contracts:
            model, result, error = answers.get()
            try:
                if error is not None:
                    raise NotReadyError(f"{model} does not answer a synthetic image: {error}") from error
                arrays = {name: result.as_numpy(name) for name in _OUTPUTS}
                variance = plausible_variance(contracts[model], arrays)
                probes.append(Probe(model, time.monotonic() - begin, variance, contracts[model].varies))
            except NotReadyError as implausible:
                wrong[model] = str(implausible)
    if wrong:
        raise NotReadyError("; ".join(wrong.values()), wrong)
    return tuple(sorted(probes, key=lambda probe: probe.model))


class Prober:
    """Sends health probes to public models, at most one at a time to each; no call here waits.

    Probes are urgent: they overtake requests in a queue, not those that run. They name `samples`, so none can be
    accepted, and carry `PROBE_ID`, by which the models leave them out of their counts of cases.
    """

    def __init__(self, grpc_url: str, models: Sequence[str]) -> None:
        self._client = connect(grpc_url, None)
        self._answers: Answers = queue.SimpleQueue()
        known = {model: _known(self._client, model) for model in models}
        self.contracts = {model: contract for model, (contract, _) in known.items()}
        self._inputs = {model: _inputs(*each) for model, each in known.items()}

    def send(self, model: str) -> None:
        """The answer appears in `answers` when it arrives."""
        _send(self._client, model, self._inputs[model], self._answers, priority=int(Priority.URGENT))

    def answers(self) -> Iterator[tuple[str, Exception | None]]:
        """(model, what is wrong with its answer) of all that came since the last call."""
        while not self._answers.empty():
            model, result, error = self._answers.get()
            try:
                if error is None:
                    arrays = {name: result.as_numpy(name) for name in _OUTPUTS}
                    plausible_variance(self.contracts[model], arrays)
            except NotReadyError as implausible:
                error = implausible
            yield model, error

    def close(self) -> None:
        """Open probes are abandoned."""
        self._client.close()


def _known(client: triton.InferenceServerClient, model: str) -> tuple[Contract, int]:
    """A model's contract, and the T of its probes."""
    try:
        config = client.get_model_config(model, client_timeout=10).config
    except InferenceServerException as error:
        raise NotReadyError(f"{model} cannot be asked for its configuration: {error.message()}") from error
    contract = parse_contract(json.loads(config.parameters[CONTRACT_PARAMETER].string_value))
    named = config.parameters[PROBE_SAMPLES].string_value if PROBE_SAMPLES in config.parameters else ""
    return contract, int(named) if named else max(_SAMPLES, len(contract.samplers))  # every member is sampled


def _inputs(contract: Contract, drawn: int) -> list[triton.InferInput]:
    image = synthetic_image(contract)
    inputs = [triton.InferInput("image", image.shape, "FP32").set_data_from_numpy(image)]
    if contract.stochastic:
        samples = np.full((1, 1), drawn, np.int32)
        inputs.append(triton.InferInput("samples", samples.shape, "INT32").set_data_from_numpy(samples))
    return inputs


def _send(client: Any, model: str, inputs: list[triton.InferInput], answers: Answers, **options: int | float) -> None:
    """The answer comes to `answers` when it arrives."""
    client.async_infer(
        model,
        inputs,
        lambda result, error: answers.put((model, result, error)),
        outputs=[triton.InferRequestedOutput(name) for name in _OUTPUTS],
        request_id=PROBE_ID,
        **options,
    )


def plausible_variance(contract: Contract, arrays: dict[str, NDArray[np.float32]]) -> float:
    """The largest variance. Raises NotReadyError where the answer cannot be right.

    It is at most p̄(1 − p̄): where all probabilities are 0 or 1, none can show, and the proof of the export has to do; so
    it has of a regression, whose numbers may end in a ReLU.
    """
    for name, array in arrays.items():
        if array is None or array.size == 0 or not np.isfinite(array).all():
            raise NotReadyError(f"{contract.name} answers a synthetic image with a {name} that is not finite")
    largest = float(arrays["variance"].max())
    mean = arrays["mean"].astype(np.float64)
    if contract.varies and contract.classes and not largest > 0.0 and float((mean * (1.0 - mean)).max()) > _SATURATED:
        raise NotReadyError(
            f"{contract.name} answers with the same output for every sample (variance 0): its masks have no effect, "
            "or its members are identical; export it again"
        )
    return largest
