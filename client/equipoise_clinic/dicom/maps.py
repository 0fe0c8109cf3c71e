"""Results on voxels: a binary SEG of the labels, and a Parametric Map for each kind of uncertainty."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import codes
from .result_source import STATEMENT, ResultSource
from .source import CHARACTERS, ascending, finished, in_file_order


def segmentation(source: ResultSource) -> Any:
    """BINARY Segmentation, one segment for each foreground class, and two between which the true outline lies where the
    policy promises that. Empty frames are left out, unless all are.

    Not LABELMAP, which Orthanc 1.10 refuses, and not FRACTIONAL, which OHIF refuses.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription

    assert source.masks is not None
    algorithm = AlgorithmIdentificationSequence(
        name=f"Equipoise {source.contract.name}"[:64],
        family=codes.ARTIFICIAL_INTELLIGENCE,
        version=str(source.contract.model_digest),
        source="Equipoise",
    )
    descriptions = [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.ANATOMICAL_STRUCTURE,
            segmented_property_type=property_type(source, name),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=source.identity.uid("segment", name),
            tracking_id=name[:64],
            anatomic_regions=[codes.region(source.body_part)],
        )
        for number, name in enumerate((*source.class_names, *source.outline_names), start=1)
    ]
    stacked = source.masks if source.outline is None else np.concatenate([source.masks, source.outline])
    masks = in_file_order(source.series, np.moveaxis(stacked, 0, -1)).astype(np.uint8)
    result = Segmentation(
        source_images=list(source.headers.datasets),
        pixel_array=masks,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        omit_empty_frames=bool(masks.any()),
        content_label="SEGMENTATION",
        content_description=STATEMENT,
        specific_character_set=CHARACTERS,
        coding_schemes=[codes.scheme()],
        **source.equipment("segmentation", 8001),
    )
    result.ContentCreatorName = ""
    return finished(result, source.headers, source.identity)


def uncertainty_maps(source: ResultSource) -> tuple[Any, Any]:
    """Parametric Maps of epistemic and aleatoric uncertainty, float32, nats, on every voxel of the source."""
    assert source.epistemic is not None and source.aleatoric is not None
    return (
        _map(source, source.epistemic, "epistemic", "mutual information, nats", codes.EPISTEMIC, 8002),
        _map(source, source.aleatoric, "aleatoric", "expected entropy, nats", codes.ALEATORIC, 8003),
    )


def _map(
    source: ResultSource, values: NDArray[np.float32], name: str, explanation: str, quantity: Any, number: int
) -> Any:
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping

    if not np.isfinite(values).all():
        raise ValueError(f"the {name} map holds values that are not finite")  # NaN would pass every validator
    limit = source.limit
    mapping = RealWorldValueMapping(
        lut_label=name.upper()[:16],
        lut_explanation=explanation,
        unit=codes.NO_UNITS,
        value_range=(0.0, limit),
        slope=1.0,
        intercept=0.0,
        quantity_definition=quantity,
    )
    result = ParametricMap(
        source_images=list(source.headers.datasets),
        pixel_array=in_file_order(source.series, values).astype(np.float32),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        # Exactly linear: the standard's other function takes no window narrower than 1, and ln 2 is.
        voi_lut_transformations=[VOILUTTransformation(limit / 2, limit, voi_lut_function="LINEAR_EXACT")],
        content_label=name.upper()[:16],
        content_description=STATEMENT,
        specific_character_set=CHARACTERS,
        coding_schemes=[codes.scheme()],
        **source.equipment(f"{name} uncertainty", number),
    )
    ascending(result, "FloatPixelData")
    result.ContentCreatorName = ""
    if source.body_part:
        result.BodyPartExamined = source.body_part
    shared = result.SharedFunctionalGroupsSequence[0]
    if "FrameAnatomySequence" not in shared:  # dcmqi's reader crashes without it
        shared.FrameAnatomySequence = [_anatomy(source)]
    return finished(result, source.headers, source.identity)


def property_type(source: ResultSource, name: str) -> Any:
    """What a class is, in a code: the rules file's, else no more than "anatomical structure"."""
    from pydicom.sr.coding import Code

    code = source.rule.segments.get(name)
    return codes.ANATOMICAL_STRUCTURE if code is None else Code(code.value, code.scheme, code.meaning)


def _anatomy(source: ResultSource) -> Any:
    from highdicom.sr import CodedConcept
    from pydicom.dataset import Dataset

    anatomy = Dataset()
    region = codes.region(source.body_part)
    anatomy.AnatomicRegionSequence = [CodedConcept(region.value, region.scheme_designator, region.meaning)]
    anatomy.FrameLaterality = str(source.series.first.get("Laterality", "") or "U")
    return anatomy
