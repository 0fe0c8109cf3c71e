"""With nothing dropped, what was handed in and what was read from it answer alike: before any pass.

The proof of the sampler starts from what was read. This ties that to the original: of an ONNX file the change of opset,
the output that was chosen, the activation that was taken off, the batch that was made dynamic; of a torch module the
training flag, which must switch dropout and nothing else. It also tells probabilities from logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from equipoise_core.contract import Activation, Contract, Precision
from equipoise_core.tolerance import TOLERANCES
from numpy.typing import NDArray

from ..errors import ProofRefused
from ..graph.nodes import remove, replace
from ..graph.session import session
from ..graph.storage import store
from ..options import Answers
from .definitions import activated
from .parity import Check
from .references import OnnxNetwork, TorchNetwork, UnknownNoise

Array = NDArray[Any]
_OF_FILE = TOLERANCES[Precision.FP32]
_OF_MODULE = 1e-3
"""More than a file's: in evaluation PyTorch may take a fused path, which rounds otherwise."""
_SMALL = 0.1
"""Differences of logits are relative to the largest logit, or to this where all are smaller."""


def compare_with_file(
    proto: onnx.ModelProto,
    network: OnnxNetwork,
    contract: Contract,
    example: Array,
    output: str | int | None,
    answers: Answers,
) -> Check:
    """The largest difference between the file's answer and the graph's, as logits or as probabilities.

    Args:
        example: normalised images `[N ≥ 1, C, *nominal]`.
        output: which of several, by index or name, as for `capture_onnx`.

    Raises:
        ProofRefused: they differ, ONNX Runtime cannot run the file, or probabilities would be taken for logits.
    """
    image = example[:1].astype(np.float32)
    logits, expected = network.undropped(image).astype(np.float64), _answer(proto, image, output)
    if expected.size != logits.size:
        raise ProofRefused(
            f"the file answers {expected.shape}, what was read from it {logits.shape}", "the chosen output", _REMEDY
        )
    expected = expected.reshape(logits.shape)
    worst = (
        _of_numbers(expected, logits)
        if contract.targets
        else min(_of_logits(expected, logits), _of_probabilities(expected, logits, contract))
    )
    if not worst <= _OF_FILE:
        raise ProofRefused(
            f"with nothing dropped, what was read from the file differs from the file itself by {worst:.2e} "
            f"(allowed {_OF_FILE:g})",
            "the chosen output",
            _REMEDY,
        )
    refuse_probabilities(network.undropped, contract, example, answers)
    return Check("the file, nothing dropped: same as what was read from it", worst, f"≤ {_OF_FILE:g}", True)


def compare_with_module(network: TorchNetwork, contract: Contract, example: Array, answers: Answers) -> Check | None:
    """The largest difference between the module in evaluation and the module sampled with nothing dropped.

    Args:
        example: normalised images `[N ≥ 1, C, *nominal]`.

    Returns:
        None where that cannot be told: its own code makes masks of noise by comparing and rounding.

    Raises:
        ProofRefused: its training flag does more than dropout, or probabilities would be taken for logits.
    """
    image = example[:1].astype(np.float32)
    differences = []
    for ones in (False, True):  # a mask that is scaled within its module, and one that is not
        try:
            expected, logits = network.evaluated(image, ones), network.undropped(image, ones)
        except UnknownNoise:
            with suppress(UnknownNoise):
                refuse_probabilities(network.evaluated, contract, example, answers)
            return None
        except Exception as error:
            raise ProofRefused(
                f"in evaluation it does not give the chosen output: {type(error).__name__}: {error}",
                "the chosen output",
                _FLAG,
            ) from error
        if logits.shape != expected.shape:
            differences.append(np.inf)
        elif answers is Answers.PROBABILITIES:
            differences.append(_of_probabilities(expected, logits.astype(np.float64), contract))
        elif contract.targets:
            differences.append(_of_numbers(expected.astype(np.float64), logits))
        else:
            differences.append(_of_logits(expected.astype(np.float64), logits))
    worst = min(differences)
    if not worst <= _OF_MODULE:
        raise ProofRefused(
            f"with nothing dropped it answers otherwise than in evaluation, by {worst:.2e} (allowed {_OF_MODULE:g}): "
            "its training flag does more than dropout (another output, a temperature, flips that are averaged)",
            "the whole network",
            _FLAG,
        )
    _refuse_batch_mates(network.evaluated, example)
    refuse_probabilities(network.evaluated, contract, example, answers)
    return Check("the module in evaluation: same with nothing dropped", worst, f"≤ {_OF_MODULE:g}", True)


def _refuse_batch_mates(answer: Callable[[Array], Array], example: Array) -> None:
    """Refuses a network whose answer to the second image depends on the first one."""
    pair = example[:2].astype(np.float32)
    alone, beside = answer(pair[-1:]).astype(np.float64), answer(pair)[-1:].astype(np.float64)
    worst = _of_logits(alone, beside) if alone.shape == beside.shape else np.inf
    if not worst <= _OF_MODULE:
        raise ProofRefused(
            f"an image's answer is another one beside another image of a batch than alone, by {worst:.2e} (allowed "
            f"{_OF_MODULE:g})",
            "the whole network",
            "Compute everything of each image alone; look for indices [0], and sums or means over axis 0.",
        )


def refuse_probabilities(
    answer: Callable[[Array], Array], contract: Contract, example: Array, answers: Answers
) -> None:
    """Refuses outputs that lie in [0, 1] for every image, however extreme: they are hardly logits."""
    if answers is not Answers.UNSTATED or contract.states_moments or contract.targets:
        return
    given = _within_unit(answer, contract, example)
    if given is None:
        return
    summing = contract.activation is Activation.SOFTMAX and np.abs(given.sum(axis=1) - 1.0).max() < 1e-4
    fitting = summing or contract.activation is Activation.SIGMOID
    raise ProofRefused(
        "its output already is probabilities (all within 0 and 1"
        + (", over the classes they add up to 1)" if summing else ")")
        + ", and would be taken for logits",
        "the chosen output",
        f"Say what it is: --answers probabilities{'' if fitting else ' --activation sigmoid'}, or --answers logits; or "
        "choose another output (--output).",
    )


def looks_classified(answer: Callable[[Array], Array], contract: Contract, example: Array) -> str | None:
    """A note where a regression's numbers look like the probabilities of classes: within 0 and 1, adding up to 1."""
    given = None
    with suppress(UnknownNoise):
        given = _within_unit(answer, contract, example) if len(contract.targets) > 1 else None
    if given is None or np.abs(given[:, : len(contract.targets)].sum(axis=1) - 1.0).max() >= 1e-4:
        return None
    return (
        "its numbers lie within 0 and 1 and add up to 1 for every image, as probabilities of classes do: if it is a "
        "classifier, export it with --task classification and --classes"
    )


def _within_unit(answer: Callable[[Array], Array], contract: Contract, example: Array) -> Array | None:
    """The last of several answers, where all lie within 0 and 1."""
    given = None
    for image in _images(contract, example):
        given = answer(image)
        seen = given[:, : len(contract.answers)]
        if not (np.isfinite(seen).all() and seen.min() >= 0.0 and seen.max() <= 1.0):
            return None
    return given


def _images(contract: Contract, example: Array) -> Iterator[Array]:
    """Images `[1, C, *nominal]` that drive logits out of [0, 1], the likely ones first."""
    noise = np.random.default_rng(3).standard_normal(example[:1].shape).astype(np.float32)
    for scale in (1.0, 1e3, -1e3):
        yield (scale * example[:1]).astype(np.float32)
        yield scale * noise


def _of_logits(expected: Array, logits: Array) -> float:
    return float(np.abs(expected - logits).max()) / max(_SMALL, float(np.abs(expected).max()))


def _of_numbers(expected: Array, found: Array) -> float:
    """The largest difference over the number itself, or a hundredth of the largest: one may be near 0 by chance."""
    scale = np.maximum(np.abs(expected), 0.01 * float(np.abs(expected).max()) or 1.0)
    return float((np.abs(expected - found) / scale).max())


def _of_probabilities(expected: Array, logits: Array, contract: Contract) -> float:
    return float(np.abs(expected - activated(logits, contract.activation, axis=1)).max())


_FLAG = (
    "Let self.training switch dropout only (nn.Dropout, or functional dropout in a module of its own), or choose the "
    "modules that drop (--sites)."
)
_REMEDY = (
    "A final Softmax has to be over the classes (axis 1), with no change of order behind it; else export the logits "
    "of the file, in opset 13 or later."
)


def _answer(proto: onnx.ModelProto, image: Array, output: str | int | None) -> Array:
    """What the file says of one image `[1, C, *S]`, its Dropout nodes left out."""
    model = ir.from_proto(proto)
    names = [str(value.name) for value in model.graph.outputs]
    for part in (model.graph, *model.functions.values()):
        for node in list(part):
            if node.op_type == "Dropout" and not node.domain:
                assert node.inputs[0] is not None
                replace(node.outputs[0], node.inputs[0])
                remove([node])
    alone, weights = store(model)
    try:
        runner = session(alone, weights=weights)
        (given,) = runner.get_inputs()
        batch = given.shape[0] if isinstance(given.shape[0], int) else 1
        answers = runner.run(None, {given.name: np.repeat(image, batch, axis=0)})
    except Exception as error:
        raise ProofRefused(
            f"the file cannot be run as it is: {str(error).splitlines()[0]}",
            "the whole network",
            "Check it with onnx.checker, and that --input-shape is what it takes.",
        ) from error
    named = [output] if output in names else str(output).split(",")
    chosen = [next((i for i, name in enumerate(names) if str(each).strip() in (str(i), name)), 0) for each in named]
    if len(chosen) == 1:
        return np.asarray(answers[chosen[0]][:1], np.float64)
    return np.concatenate([np.asarray(answers[each][:1], np.float64).reshape(1, -1) for each in chosen], axis=1)
