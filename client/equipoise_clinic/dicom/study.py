"""A study through a model: `select` says which series go where, `analyse` asks the server and makes the results.

Only pixels and voxel spacing leave this process; patient and study are copied into the results on this side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import InvalidInput, MissingExtra, ServerFailure, ServerUnavailable, StudyRejected
from equipoise_client.extras import needs
from equipoise_client.figure import grey
from equipoise_client.images import dicom as pixels
from equipoise_client.images.prepare import Prepared, fit
from equipoise_client.images.rejections import (
    NoGeometry,
    NoSeriesFits,
    SeveralSeriesFit,
    TooFewSlices,
    UnsuitableImage,
    WrongModality,
    WrongPlane,
    WrongView,
)
from equipoise_client.images.source import SourceImage
from equipoise_client.prediction import Prediction, Priority
from equipoise_core.contract import Contract, Task
from numpy.typing import NDArray

from .result_source import Predecessor, ResultSource, result_source
from .rules import Rule, Rules
from .series import Group, Series, read, volume_of


@dataclass(frozen=True, eq=False)
class ChosenSeries:
    """A series that goes to a model; its geometry is checked."""

    series: Series
    rule: Rule

    @property
    def model(self) -> str:
        return self.rule.model


@dataclass(frozen=True, eq=False)
class Refusal:
    """A series that is for a model and cannot be used."""

    model: str
    reason: StudyRejected


@dataclass(frozen=True, eq=False)
class Selection:
    """What becomes of the series of a study; those that no rule fits are left out."""

    chosen: tuple[ChosenSeries, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, eq=False)
class Slice:
    """The slice that the network knows least about, for looking at; of a classification the image itself.

    Attributes:
        index: from 0, ascending along the slice normal.
        instance_uid: SOP Instance UID of the source that holds it.
        grey: uint8 `[rows, columns]`, the 1st to 99th percentile of the series.
        mask: uint8 `[rows, columns]`, 0 or the number of the foreground class from 1; None for classification.
        uncertainty: float32 `[rows, columns]`, epistemic, nats; None for classification.
        limit: the largest uncertainty there can be, nats: the end of a colour scale on which pictures compare.
        spacing: mm between (rows, columns), or None.
    """

    index: int
    instance_uid: str
    grey: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None
    uncertainty: NDArray[np.float32] | None
    limit: float
    spacing: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Analysis:
    """What the service said about a series.

    Attributes:
        objects: complete DICOM instances, one series each in the source's study: Segmentation, Parametric Maps
            (epistemic, aleatoric), Comprehensive 3D SR; of a classification the SR alone. Empty where none can be made.
        prediction: the answer, held back from `accept` where the series itself raises doubts, is incomplete, or no
            objects can be made of it.
        most_uncertain: for a picture.
        contract, prepared: what the model takes, and the image as it got it.
        cleaned: keywords of attributes of the source that DICOM does not allow so, corrected or emptied in the results.
    """

    objects: tuple[Any, ...]
    prediction: Prediction
    most_uncertain: Slice
    contract: Contract
    prepared: Prepared
    series_uid: str
    cleaned: tuple[str, ...] = ()

    @property
    def model_digest(self) -> str:
        return str(self.prediction.record.get("model_digest") or self.contract.model_digest)


def select(given: Path | Iterable[Any], rules: Rules) -> list[ChosenSeries]:
    """As `sorted_out`, where refusals of some series are of no interest. Raises StudyRejected where nothing is left."""
    found = sorted_out(given, rules)
    if not found.chosen:
        raise found.refused[0].reason
    return list(found.chosen)


def sorted_out(given: Path | Iterable[Any], rules: Rules) -> Selection:
    """Which series of one study go to which model. A series that cannot be used stops no other.

    Args:
        given: a folder with DICOM files, or datasets with pixels, in any order; of one study of one patient.

    Raises StudyRejected, where no series fits a rule or all are mixed up; never anything else about data.
    """
    with needs("clinic", "reading DICOM studies"):
        groups = [image for group in read(given) for image in group.images()]
        chosen: list[ChosenSeries] = []
        refused: list[Refusal] = []
        taken: set[str] = set()
        for rule in rules.series:
            fitting = [group for group in groups if _misfit(group, rule) is None]
            if not fitting or rule.model in taken:
                continue
            taken.add(rule.model)
            try:
                chosen.append(ChosenSeries(volume_of(_the_one(fitting, rule), rule.ignore_counts), rule))
            except StudyRejected as reason:
                refused.append(Refusal(rule.model, reason))
    if not chosen and not refused:
        misfits = [_misfit(group, rule) for rule in rules.series for group in groups]
        raise max((each for each in misfits if each is not None), key=lambda each: _CLOSENESS.index(type(each)))
    return Selection(tuple(chosen), tuple(refused))


OUTPUTS = {
    Task.SEGMENTATION: ("labels", "epistemic", "aleatoric"),
    Task.CLASSIFICATION: ("calibrated", "mean", "variance"),
    Task.REGRESSION: (),
}
"""What result objects are made of, beside the decision and its estimates."""

_FRONTAL = ("PA", "AP")


def _the_one(fitting: list[Group], rule: Rule) -> Group:
    """The only one that fits; of radiographs the only frontal one. Raises SeveralSeriesFit."""
    if len(fitting) == 1:
        return fitting[0]
    frontal = [group for group in fitting if group.view in _FRONTAL]
    if len(frontal) == 1 and all(group.view for group in fitting):
        return frontal[0]
    raise SeveralSeriesFit(f"{len(fitting)} fit the rule for {rule.model}; make it narrower (description, view, plane)")


_CLOSENESS = (NoSeriesFits, WrongModality, WrongPlane, WrongView, TooFewSlices)
"""Where no series fits, the reason of the closest one is given; later ones are closer."""


def _misfit(group: Group, rule: Rule) -> NoSeriesFits | None:
    """Why the series is not for this rule, or None where it is."""
    if not rule.describes(group.description):
        return NoSeriesFits()
    if rule.modality and group.modality != rule.modality:
        return WrongModality(f"{rule.modality} expected")
    if rule.plane and group.plane != rule.plane:
        return WrongPlane(f"{rule.plane} expected")
    if rule.view and group.view != rule.view.upper():
        return WrongView(f"{rule.view} expected")
    if group.slices < rule.minimum_slices:
        return TooFewSlices(f"{group.slices}, expected {rule.minimum_slices} or more")
    return None


class PartialAnswer(ServerFailure):
    """The server could not draw all samples: the next answer may have all, or it is this image that it fails on."""


def analyse(
    chosen: ChosenSeries,
    client: UncertaintyClient,
    *,
    missing: Sequence[str] = (),
    predecessor: Predecessor | None = None,
    closed: Callable[[str], str] = lambda model: "",
    whole: bool = False,
    samples: int | None = None,
    seed: int | None = None,
    priority: Priority | int | None = None,
    timeout: float | None = None,
    group: str | None = None,
) -> Analysis:
    """Asks the server about a series and makes the result objects.

    Args:
        missing: reasons for which the series is incomplete, beyond those of its own headers.
        predecessor: the report of an earlier result, about fewer images, that was sent.
        closed: model → why it may accept nothing at present; empty: it may.
        whole: raise PartialAnswer where not all samples could be drawn; else such an answer is for review.
        group: of cases that the series is of; None: what the rule's `group` attribute says.

    Raises StudyRejected where the model cannot take it; what the client raises about the server passes through
    (ServerUnavailable, DeadlineExceeded, … : another time it may work).
    """
    with needs("clinic", "writing DICOM results"):
        from .report import objects_of
    series = chosen.series
    model = chosen.rule.model
    contract = client.contract(model, timeout=timeout)
    segmentation = contract.per_voxel
    if segmentation and series.positions is None:
        raise NoGeometry("a segmentation needs to know where the image lies")
    try:
        prepared = fit(series.image(), contract)
        answer = client.predict(
            model,
            prepared.pixels,
            samples=samples,
            seed=seed,
            spacing=prepared.spacing if contract.physical else None,
            group=_stated(series, chosen.rule.group) if group is None else group,
            outputs=OUTPUTS[contract.task],
            priority=priority,
            timeout=timeout,
        )
    except StudyRejected:
        raise
    except InvalidInput as error:
        raise UnsuitableImage(str(error)) from error
    if answer.record.get("model_digest", contract.model_digest) != contract.model_digest:
        # Its results would name classes and model as the one before; the client knows the new one by now.
        raise ServerUnavailable(f"{model} was replaced while it was asked; ask again")
    codes = {problem.get("code") for problem in answer.record.get("problems") or () if isinstance(problem, dict)}
    partial = bool(codes & {"sampler_failed", "first_pass_failed"})
    if partial and whole:
        raise PartialAnswer(f"{model} could not draw all samples; ask again")
    prediction = prepared.judge(answer)
    if partial:
        prediction = prediction.at_most_review("not all samples could be drawn")
    incomplete = (*series.incomplete, *missing)
    if incomplete:
        prediction = prediction.at_most_review(f"the series is incomplete: {'; '.join(incomplete)}")
    if why := closed(model):
        prediction = prediction.at_most_review(f"accept is closed: {why}")
    if predecessor is not None:
        prediction = prediction.remarked("replaces an earlier result that was incomplete: it did not cover all images")
    source = result_source(series, chosen.rule, contract, prepared, prediction, incomplete, predecessor)
    objects: tuple[Any, ...] = ()
    cleaned: tuple[str, ...] = ()
    try:
        with pixels.silence():
            cleaned = source.headers.cleaned
            objects = objects_of(source)
    except (MissingExtra, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (highdicom checks what the source says, and raises many kinds)
        prediction = prediction.at_most_review(
            f"no result objects can be made for this series ({type(error).__name__})"
        )
    picture = _most_uncertain(source, prepared.source)
    return Analysis(objects, prediction, picture, contract, prepared, series.uid, cleaned)


def _stated(series: Series, keyword: str) -> str | None:
    """What all images of a series say alike; None where they say nothing, or contradict each other."""
    if not keyword:
        return None
    stated = {str(dataset.get(keyword) or "").strip() for dataset in series.datasets}
    return (stated.pop() or None) if len(stated) == 1 else None


def _most_uncertain(source: ResultSource, image: SourceImage) -> Slice:
    """The slice with the largest sum of epistemic uncertainty."""
    stack = grey(image.pixels)
    index = 0 if source.epistemic is None else int(np.argmax(source.epistemic.sum(axis=(1, 2))))
    shown = stack[index] if stack.ndim == 3 else stack
    mask = None
    if source.masks is not None:
        mask = np.zeros(shown.shape, np.uint8)
        for number, each in enumerate(source.masks[:, index], start=1):
            mask[each] = number
    return Slice(
        index,
        source.series.instance_uid(index),
        np.rint(shown * 255).astype(np.uint8),
        mask,
        None if source.epistemic is None else source.epistemic[index],
        source.limit,
        source.series.plane_spacing,
    )


def outputs(objects: Sequence[Any]) -> list[str]:
    """What each result object is called in a file name: `seg`, `epistemic`, `aleatoric`, `sr`."""
    return [
        {"SEG": "seg", "SR": "sr"}.get(each.Modality, str(each.get("ContentLabel", "")).lower()) for each in objects
    ]
