"""Which dropout rate is best? p is a property of the masks, so a published sampler is asked at others without training.

In the graph a kept unit is scaled by 1/(1 − p), inside the table that unpacks the bits (`passes.unpack_masks`): that
table is the only thing to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from equipoise_core.case import Model
from equipoise_core.contract import Activation, Contract
from onnx import numpy_helper
from rich.console import Console
from rich.progress import track

from ..graph.session import OnnxSampler
from ..progress import phase
from . import metrics
from .cases import Labelled, Measured, measure
from .choose import stacked
from .errors import CalibrationError

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)


@dataclass(frozen=True)
class Rate:
    """Figures at one probability of dropping; `None` is the network's own."""

    p: float | None
    ece: float
    nll: float
    brier: float
    aurc: float
    loss: float


def with_rate(sampler: onnx.ModelProto, contract: Contract, p: float) -> tuple[onnx.ModelProto, Contract]:
    """Sampler and contract with every site dropping with probability p.

    Raises CalibrationError where p is no probability below 1, without a table, and where a site is scaled elsewhere in
    the graph (stochastic depth, alpha dropout): a table alone does not change its rate.
    """
    if not 0.0 <= p < 1.0:
        raise CalibrationError(f"--sweep-p {p:g}: a probability of dropping is at least 0 and below 1")
    own = [1.0 / (1.0 - site.p) for site in contract.sites]
    changed = onnx.ModelProto()
    changed.CopyFrom(sampler)
    found = 0
    for entry in changed.graph.initializer:
        if list(entry.dims) != [256, 8]:
            continue
        table = numpy_helper.to_array(entry)
        if table.max() > 0 and np.array_equal(table > 0, _BITS > 0):
            if not np.isclose(float(table.max()), own, rtol=1e-3).any():
                raise CalibrationError(
                    f"{contract.name}: a site does not scale what it keeps where it is masked (stochastic depth, alpha "
                    "dropout); its rate cannot be swept: leave --sweep-p out"
                )
            entry.CopyFrom(numpy_helper.from_array((_BITS / np.float32(1.0 - p)).astype(table.dtype), entry.name))
            found += 1
    if not found:
        raise CalibrationError(
            f"{contract.name}: the sampler unpacks no mask bits by a table; it has no rate to change"
        )
    return changed, replace(contract, sites=tuple(replace(site, p=p) for site in contract.sites))


@phase("trying dropout rates")
def sweep(
    model: Model,
    samplers: Sequence[onnx.ModelProto],
    cases: Sequence[Labelled],
    rates: Sequence[float],
    acceptable_dice: float,
    score: str,
    quiet: bool = False,
) -> list[Rate]:
    """The network's own rates and each of `rates`, on the same cases with masks from the same seeds."""
    results = []
    for p in (None, *rates):
        changed = [(proto, model.contract) if p is None else with_rate(proto, model.contract, p) for proto in samplers]
        run = [OnnxSampler(proto.SerializeToString()) for proto, _ in changed]
        asked = replace(model, contract=replace(changed[0][1], first_pass=None))  # of the samples alone
        what = "its own p" if p is None else f"p = {p:g}"
        measured = [
            measure(asked, case, run, acceptable_dice)
            for case in track(cases, what, console=Console(stderr=True), disable=quiet)
        ]
        results.append(rate_of(p, measured, score, model.contract.activation))
    return results


def rate_of(p: float | None, measured: Sequence[Measured], score: str, activation: Activation) -> Rate:
    """Figures of cases at one rate; of labels that may hold together each is a question of its own: no or yes."""
    probabilities, hits = stacked(measured, [case.full for case in measured])
    if activation is Activation.SIGMOID:
        probabilities, hits = metrics.no_and_yes(probabilities.ravel()), metrics.no_and_yes(hits.ravel())
    labels = hits.argmax(axis=1)
    losses = np.array([case.full.loss for case in measured])
    scores = np.array([case.full.scores[score] for case in measured])
    return Rate(
        p,
        metrics.expected_calibration_error(probabilities, labels),
        metrics.negative_log_likelihood(probabilities, labels),
        metrics.brier_score(probabilities, labels),
        metrics.area_under_risk_coverage(scores, losses),
        float(losses.mean()),
    )
