"""Front end for torch: a module → an ONNX graph in which every stochastic operation is an `equipoise::Mask`.

torch.export shows each stochastic site as an ATen operator (dropout, feature dropout, bernoulli, attention with
dropout, …). `marking` rewrites each of them, `recurrent` and `per_image` what stands in its way.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import CaptureRefused
from ..graph.marker import BATCH, mask, translate_mask
from ..graph.randomness import sampling
from ..progress import phase
from .active import follows_size
from .one_size import OneSizeOnly, several_sizes
from .per_image import answer_each_image
from .prepare import Prepared
from .recurrent import split_layers
from .sizes import dimension_names
from .torch_ops import mark_stochastic

OPSET = 18


def capture(prepared: Prepared, spatial: tuple[int | str, ...], multiple: int) -> ir.Model:
    """Traces the network with only its active modules in training mode.

    Args:
        spatial: per spatial axis a fixed size or the name of a dynamic dimension.
        multiple: dynamic sizes are multiples of this.

    Returns:
        An ONNX graph, opset 18, with input `image` and one output `logits`.
    """
    network, active, example = prepared.network, prepared.active, prepared.example
    other = tuple(s + multiple if isinstance(n, str) else s for s, n in zip(example.shape[2:], spatial, strict=True))
    if other != tuple(example.shape[2:]) and follows_size(network, active, example, other):
        raise CaptureRefused(
            "a probability of dropping follows from the image's size, so one model cannot serve several",
            "the whole network",
            "Export for one size (--sizes fixed), or state the probability as a number.",
        )
    with sampling(network, active), phase("torch.export"):
        program = _trace(network, example, spatial, multiple)
    with phase("marking"):
        split_layers(program)
        drawn_once = mark_stochastic(program, dimension_names(program, spatial))
        answer_each_image(program, drawn_once)
    with phase("to ONNX"):
        return _to_onnx(program)


def _trace(module: nn.Module, example: Tensor, spatial: tuple[int | str, ...], multiple: int) -> ExportedProgram:
    shapes: dict[int, Any] = {0: Dim(BATCH, min=1)}
    for axis, size in enumerate(spatial, start=2):
        if isinstance(size, str):
            dim = Dim(f"_{size}", min=1)
            shapes[axis] = multiple * dim if multiple > 1 else dim
    steps = {axis: multiple if axis else 1 for axis in shapes}
    failure: Exception | None = None
    for strict in (False, True):
        try:
            with torch.no_grad(), _quiet(), nullcontext() if strict else several_sizes(module, steps):
                return torch.export.export(module, (example,), dynamic_shapes=(shapes,), strict=strict)
        except Exception as error:  # noqa: BLE001  # torch.export raises anything; it is translated below
            failure = failure or error
    assert failure is not None
    raise _explained(failure, spatial) from failure


def _explained(error: Exception, spatial: tuple[int | str, ...]) -> CaptureRefused:
    """torch.export's error as a refusal that says what to do."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = _user_code(error)
    if "data-dependent" in text.lower() or "DataDependent" in type(error).__name__ or "dynamic control flow" in text:
        return CaptureRefused(
            f"the forward pass decides by the values of a tensor, which no static graph can ({first})",
            where,
            "Replace the `if` by torch.where, or move the decision out of the network.",
        )
    constrained = isinstance(error, OneSizeOnly) or "onstraint" in text or "specializ" in text.lower()
    of_batch = isinstance(error, OneSizeOnly) and not error.axis
    if any(isinstance(size, str) for size in spatial) and constrained and not of_batch:
        return CaptureRefused(
            f"the network does not work at every spatial size ({first})",
            where,
            "Export for one size (--sizes fixed), or state the right divisor (--multiple).",
        )
    if constrained:
        return CaptureRefused(
            f"the network fixes the number of images in a batch ({first})",
            where,
            "Use x.shape[0] instead of a number, and start the batch at axis 0.",
        )
    if "SymIntArrayRef" in text:  # PyTorch has no variant of the operation for sizes that are not numbers yet
        return CaptureRefused(
            "an operation cannot be traced for several sizes, such as torch.rand with a torch.Generator of its own",
            where,
            "Leave `generator=` out: what is drawn follows from the request's seed.",
        )
    return CaptureRefused(
        f"torch.export cannot trace the network: {type(error).__name__}: {first}",
        where,
        "See the message; the offending Python has to be written with tensor operations.",
    )


def _user_code(error: Exception) -> str:
    """The last line of the network's own code in a traceback."""
    trace = error.__traceback__
    where = "the whole network"
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if f"{torch.__name__}/" not in file.replace("\\", "/") and "equipoise_export" not in file and "<" not in file:
            where = f"{file.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where


# --- to ONNX --------------------------------------------------------------------------------------------------------


def _to_onnx(program: ExportedProgram) -> ir.Model:
    with torch.no_grad(), _quiet():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                custom_translation_table={mask._opoverload: translate_mask},
                optimize=False,  # `simplify` does what is needed of it, in a tenth of the time
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise CaptureRefused(
                f"an operation has no ONNX counterpart ({str(cause).splitlines()[0]})",
                "the whole network",
                "Write it with operations that torch.onnx knows.",
            ) from error
    assert exported is not None
    return exported.model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on both streams, in warnings and in the log; what matters of it comes back as errors."""
    libraries = {"torch", "onnxscript", "onnx_ir"}
    parts = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in libraries]  # with own levels
    loggers = [logging.getLogger(name) for name in {*libraries, *parts}]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
