"""The result report: a Comprehensive 3D SR after TID 1500, preliminary and unverified.

One TID 1411 group for each segment (volume with the ends of its interval, and its standard deviation), one TID 1501
group for the whole case (score, route, reason, intended use; of a classification the probabilities, of a regression the
numbers with the ends of their intervals).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from equipoise_client import __version__
from equipoise_client.prediction import Estimate
from equipoise_core.contract import Task

from . import codes
from .identity import uid_of
from .maps import property_type, segmentation, uncertainty_maps
from .result_source import STATEMENT, ResultSource
from .source import CHARACTERS, finished


def objects_of(source: ResultSource) -> tuple[Any, ...]:
    """All that is stored: Segmentation, Parametric Maps, report; without voxels the report alone.

    The same input gives the same bytes.
    """
    if source.masks is None:
        return (report(source, None),)
    segments, maps = segmentation(source), uncertainty_maps(source)
    return (segments, *maps, report(source, segments, maps))


def report(source: ResultSource, segments: Any | None, evidence: tuple[Any, ...] = ()) -> Any:
    """The SR; `segments` is the SEG that the volumes are of, `evidence` what else was made of it."""
    from highdicom.sr import (
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes as standard

    device = ObserverContext(
        observer_type=standard.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=uid_of("device", source.contract.model_digest),
            name=f"Equipoise {source.contract.name}",
            manufacturer_name="Equipoise",
            model_name=source.contract.name,
            serial_number=str(source.contract.model_digest),
        ),
    )
    groups = [_case(source)]
    if segments is not None:
        groups = [*_segments(source, segments), *groups]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=device),
        procedure_reported=codes.procedure(str(source.series.first.get("Modality", ""))),
        imaging_measurements=groups,
        title=codes.IMAGING_REPORT,
    )
    result = Comprehensive3DSR(
        evidence=[*source.headers.datasets, *([] if segments is None else [segments]), *evidence],
        content=content[0],
        is_complete=True,
        is_final=False,
        is_verified=False,
        specific_character_set=CHARACTERS,
        coding_schemes=[codes.scheme()],
        previous_versions=_previous(source),
        **source.equipment("report", 8004),
    )
    return finished(result, source.headers, source.identity)


def _previous(source: ResultSource) -> list[Any] | None:
    """For Predecessor Documents Sequence (PS3.3 C.17.2): a report about fewer images of the series."""
    from pydicom.dataset import Dataset
    from pydicom.uid import Comprehensive3DSRStorage

    if source.predecessor is None:
        return None
    earlier = Dataset()
    earlier.StudyInstanceUID, earlier.SeriesInstanceUID = source.series.study_uid, source.predecessor.series_uid
    earlier.SOPClassUID, earlier.SOPInstanceUID = Comprehensive3DSRStorage, source.predecessor.instance_uid
    return [earlier]


def _segments(source: ResultSource, segments: Any) -> Iterator[Any]:
    """One TID 1411 group for each segment."""
    from highdicom.sr import (
        FindingSite,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    volume = source.prediction.volume
    for number, name in enumerate(source.class_names, start=1):
        segment = ReferencedSegment(
            sop_class_uid=str(segments.SOPClassUID),
            sop_instance_uid=str(segments.SOPInstanceUID),
            segment_number=number,
            source_series=SourceSeriesForSegmentation(source.series.uid),
        )
        yield VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(source.identity.uid("segment", name), name),
            referenced_segment=segment,
            finding_type=_concept(property_type(source, name)),
            finding_sites=[FindingSite(anatomic_location=codes.region(source.body_part))],
            algorithm_id=_algorithm(source),
            measurements=_volumes(None if volume is None else volume.classes.get(name)) or None,
        )


def _case(source: ResultSource) -> Any:
    """The TID 1501 group for the whole case."""
    from highdicom.sr import (
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        RelationshipTypeValues,
        TextContentItem,
        TrackingIdentifier,
    )

    prediction, contract = source.prediction, source.contract
    measurements, evaluations = [], []
    if math.isfinite(prediction.case_score):
        measurements.append(_measurement(codes.CASE_SCORE, prediction.case_score, codes.NO_UNITS))
    if contract.task is Task.SEGMENTATION and prediction.volume is not None and len(source.class_names) > 1:
        measurements.extend(_volumes(prediction.volume.total))
    if contract.task is Task.CLASSIFICATION:
        measurements.extend(_probabilities(source))
    if contract.targets:
        measurements.extend(_numbers(source))
    evaluations.append(QualitativeEvaluation(name=codes.ROUTE, value=codes.ROUTES[prediction.route.value]))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(source.identity.uid("case"), "Whole case"),
        finding_type=_concept(codes.WHOLE_CASE),
        algorithm_id=_algorithm(source),
        measurements=measurements or None,
        qualitative_evaluations=evaluations,
    )
    for concept, text in ((codes.REASON, prediction.reason), (codes.INTENDED_USE, STATEMENT)):
        group[0].ContentSequence.append(
            TextContentItem(
                name=_concept(concept), value=text or "none given", relationship_type=RelationshipTypeValues.CONTAINS
            )
        )
    return group


def _probabilities(source: ResultSource) -> Iterator[Any]:
    """Of each class, recalibrated where the policy says how; by a name of their own mean and deviation of the samples
    before that. The class is the method's code: it is the model's."""
    from highdicom.sr import TrackingIdentifier

    prediction = source.prediction
    for k, name in enumerate(source.contract.classes):
        sd = math.sqrt(max(0.0, float(prediction.variance[k])))
        for concept, value, derivation in (
            (codes.PROBABILITY, float(prediction.calibrated[k]), None),
            (codes.SAMPLED_PROBABILITY, float(prediction.mean[k]), codes.MEAN),
            (codes.SAMPLED_PROBABILITY, sd, codes.STANDARD_DEVIATION),
        ):
            yield _measurement(
                concept,
                value,
                codes.NO_UNITS,
                derivation=derivation,
                tracking_identifier=TrackingIdentifier(
                    source.identity.uid("probability", name), f"Probability of {name}"
                ),
                method=_concept(codes.class_code(name)),
            )


def _numbers(source: ResultSource) -> Iterator[Any]:
    """Of each target. Raises codes.UnknownUnit for a unit that DICOM has no code for."""
    from highdicom.sr import TrackingIdentifier

    for name, value in (source.prediction.values or {}).items():
        tracking = TrackingIdentifier(source.identity.uid("number", name), name)
        yield from _estimates(value, codes.number_code(name), codes.unit(value.unit), tracking_identifier=tracking)


def _volumes(estimate: Estimate | None) -> list[Any]:
    return _estimates(estimate, codes.VOLUME, codes.MILLILITRE)


def _estimates(estimate: Estimate | None, concept: Any, unit: Any, **details: Any) -> list[Any]:
    """The mean with the distances to its interval's ends, and its standard deviation; empty where not known.

    Distances are left out where the mean lies outside its interval.
    """
    from highdicom.sr import MeasurementProperties

    if estimate is None or not math.isfinite(estimate.mean):
        return []
    up, down = estimate.high - estimate.mean, estimate.mean - estimate.low
    properties = None
    if math.isfinite(up) and math.isfinite(down) and up >= 0.0 and down >= 0.0:
        properties = MeasurementProperties(
            upper_measurement_uncertainty=_ds(up), lower_measurement_uncertainty=_ds(down)
        )
    mean = _measurement(concept, estimate.mean, unit, derivation=codes.MEAN, properties=properties, **details)
    for item in mean[0].get("ContentSequence", []):
        if item.ValueType == "NUM":  # highdicom gives both ends the unit "1"
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [_concept(unit)]
    found = [mean]
    if math.isfinite(estimate.sd):
        found.append(_measurement(concept, estimate.sd, unit, derivation=codes.STANDARD_DEVIATION, **details))
    return found


def _measurement(name: Any, value: float, unit: Any, **details: Any) -> Any:
    from highdicom.sr import Measurement

    return Measurement(name=name, value=_ds(value), unit=unit, **details)


def _algorithm(source: ResultSource) -> Any:
    from highdicom.sr import AlgorithmIdentification

    record, prediction = source.prediction.record, source.prediction
    parameters = [
        f"model digest (SHA-256): {source.contract.model_digest}",
        f"policy digest (SHA-256): {record.get('policy_digest') or 'no policy'}",
        f"samples: {prediction.samples_used}",
        f"seed: {record.get('seed')}",
        f"client: Equipoise {__version__}",
    ]
    if source.contract.per_voxel:
        parameters.append(f"interval of volumes: {_interval(record, 'volume_level')}")
    if source.contract.targets:
        parameters.append(f"interval of numbers: {_interval(record, 'interval_level')}")
    return AlgorithmIdentification(
        name=f"Equipoise {source.contract.name}", version=str(source.contract.model_digest), parameters=parameters
    )


def _interval(record: Mapping[str, Any], key: str) -> str:
    """What intervals promise: there is no code for coverage."""
    level = record.get(key)
    if isinstance(level, float):
        return f"{level:.0%}, conformally calibrated"
    return "of the samples alone, not calibrated" if key in record else "as the policy states"


def _concept(code: Any) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme_designator, code.meaning)


def _ds(value: float) -> float:
    """A number that DICOM's decimal strings (16 characters) hold without rounding it again."""
    return float(f"{value:.9g}")
