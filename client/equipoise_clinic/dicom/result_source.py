"""What the result objects are made of: one decision about one series, with its maps on the source's voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from equipoise_client import __version__
from equipoise_client.figure import epistemic_limit
from equipoise_client.images.outline import outline_level, outline_of
from equipoise_client.images.prepare import Prepared
from equipoise_client.prediction import Prediction
from equipoise_core.contract import Activation, Contract
from equipoise_core.outline import BETWEEN, INSIDE
from numpy.typing import NDArray

from .identity import Identity, identity_of
from .rules import Rule
from .series import Series
from .source import Headers, headers

STATEMENT = "Preliminary, unverified; research only, not a medical device"
"""The intended use, short enough for Content Description (64 characters)."""


@dataclass(frozen=True)
class Predecessor:
    """The report of an earlier result about the same series, which was sent and did not cover all of its images."""

    series_uid: str
    instance_uid: str


@dataclass(frozen=True, eq=False)
class ResultSource:
    """One decision about one series.

    Attributes:
        masks: bool `[foreground classes, slices, rows, columns]` on the source's voxels, slices ascending along the
            normal; None where the answer is for the image as a whole.
        epistemic, aleatoric: float32 `[slices, rows, columns]`, nats, likewise; the largest of all classes where
            classes do not exclude each other.
        predecessor: an earlier report that this one replaces, as `analyse` takes it.
        outline: bool `[2, slices, rows, columns]`: the masks that the true outline lies outside of and inside of; None
            where the policy promises nothing.
    """

    series: Series
    rule: Rule
    contract: Contract
    prediction: Prediction
    identity: Identity
    masks: NDArray[np.bool_] | None
    epistemic: NDArray[np.float32] | None
    aleatoric: NDArray[np.float32] | None
    predecessor: Predecessor | None = None
    outline: NDArray[np.bool_] | None = None

    @cached_property
    def headers(self) -> Headers:
        """The series' headers as the results quote them."""
        return headers(self.series)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the foreground, in the order of `masks`."""
        return tuple(self.contract.classes[k] for k in self.contract.foreground)

    @property
    def outline_names(self) -> tuple[str, ...]:
        """Of the masks in `outline`."""
        if self.outline is None:
            return ()
        level = outline_level(self.prediction)
        return f"outline, inner bound ({level:.0%})", f"outline, outer bound ({level:.0%})"

    @property
    def limit(self) -> float:
        """The largest epistemic or aleatoric uncertainty there can be, nats."""
        return epistemic_limit(self.contract)

    @property
    def body_part(self) -> str:
        """Body Part Examined: the source's, else the rule's, else ""."""
        return str(self.series.first.get("BodyPartExamined", "") or "") or self.rule.body_part

    def equipment(self, series_name: str, number: int) -> dict[str, Any]:
        """Arguments that all of highdicom's objects take; `series_name` tells the decision's series apart."""
        identity = self.identity
        return {
            "series_instance_uid": identity.uid("series", series_name),
            "series_number": number,
            "series_description": f"Equipoise {self.contract.name}: {series_name} (preliminary)"[:64],
            "sop_instance_uid": identity.uid("instance", series_name),
            "instance_number": 1,
            "manufacturer": "Equipoise",
            "manufacturer_model_name": f"Equipoise {self.contract.name}"[:64],
            "software_versions": __version__,
            "device_serial_number": str(self.contract.model_digest),
            "content_date": identity.date,
            "content_time": identity.time,
            "series_date": identity.date,
            "series_time": identity.time,
        }


def result_source(
    series: Series,
    rule: Rule,
    contract: Contract,
    prepared: Prepared,
    prediction: Prediction,
    remarks: Sequence[str] = (),
    predecessor: Predecessor | None = None,
) -> ResultSource:
    """Brings the answer's maps back to the source's voxels.

    Args:
        remarks: what else was decided on, beyond the answer; part of the result's identity.
    """
    replaced = () if predecessor is None else (predecessor.instance_uid,)
    identity = identity_of(series, prediction, (*remarks, *replaced))
    if not contract.per_voxel:
        return ResultSource(series, rule, contract, prediction, identity, None, None, None, predecessor)
    labels = _slices(prepared.to_source(prediction.labels))
    if contract.activation is Activation.SOFTMAX:
        masks = np.stack([labels[0] == k for k in contract.foreground])
    else:
        masks = labels[list(contract.foreground)] > 0
    maps = (_slices(prepared.to_source(each)).max(axis=0) for each in (prediction.epistemic, prediction.aleatoric))
    epistemic, aleatoric = maps
    found = outline_of(contract, prepared, prediction)
    outline = None
    if found is not None:
        band = _slices(prepared.to_source(found))[0]
        outline = np.stack([band == INSIDE, band >= BETWEEN])
    return ResultSource(series, rule, contract, prediction, identity, masks, epistemic, aleatoric, predecessor, outline)


def _slices(values: NDArray[Any]) -> NDArray[Any]:
    """`[E, slices, rows, columns]`, of a single image too."""
    return values if values.ndim == 4 else values[:, None]
