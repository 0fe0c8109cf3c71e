"""The DICOM Conformance Statement, in the layout of PS3.2 annex A, from what the code negotiates and writes.

`equipoise gateway CONFIG --conformance` prints a site's; `CONFORMANCE.md` in the package is that of
the example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from equipoise_client import __version__
from pydicom.uid import UID, Comprehensive3DSRStorage, ParametricMapStorage, SegmentationStorage
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find  # type: ignore[attr-defined]
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove as Move  # type: ignore[attr-defined]
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from ..dicom import codes
from ..dicom.archive import DUPLICATE
from .delivery import NO_KIND, PLAIN
from .receivers import (
    CANNOT_UNDERSTAND,
    OUT_OF_RESOURCES,
    PDU,
    PROCESSING_FAILURE,
    SUCCESS,
    syntaxes,
)
from .settings import Settings, kind_of

CREATED = (SegmentationStorage, ParametricMapStorage, Comprehensive3DSRStorage)

_ALL = (
    "SOPClassUID", "SOPInstanceUID", "StudyDate", "SeriesDate", "ContentDate", "StudyTime", "SeriesTime", "ContentTime",
    "AccessionNumber", "Modality", "Manufacturer", "ReferringPhysicianName", "CodingSchemeIdentificationSequence",
    "SeriesDescription", "ManufacturerModelName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "DeviceSerialNumber", "SoftwareVersions", "ContributingEquipmentSequence", "StudyInstanceUID", "SeriesInstanceUID",
    "StudyID", "SeriesNumber", "InstanceNumber",
)  # fmt: skip
_FRAMES = (
    "ImageType", "ReferencedSeriesSequence", "SourceImageSequence", "FrameOfReferenceUID", "PositionReferenceIndicator",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "SamplesPerPixel", "PhotometricInterpretation",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "LossyImageCompression", "ContentLabel",
    "ContentDescription", "ContentCreatorName", "PresentationLUTShape", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
ATTRIBUTES = {
    SegmentationStorage: (
        *_ALL, *_FRAMES, "BitsStored", "HighBit", "PixelRepresentation", "SegmentationType", "SegmentSequence",
        "SegmentsOverlap", "PixelData",
    ),
    ParametricMapStorage: (
        *_ALL, *_FRAMES, "PixelPresentation", "BodyPartExamined", "ContentQualification", "DimensionOrganizationType",
        "BurnedInAnnotation", "RecognizableVisualFeatures", "AcquisitionContextSequence", "FloatPixelData",
    ),
    Comprehensive3DSRStorage: (
        *_ALL, "ReferencedPerformedProcedureStepSequence", "ValueType", "ConceptNameCodeSequence",
        "ContinuityOfContent", "PerformedProcedureCodeSequence", "PredecessorDocumentsSequence",
        "CurrentRequestedProcedureEvidenceSequence", "CompletionFlag", "VerificationFlag", "PreliminaryFlag",
        "ContentTemplateSequence", "ContentSequence",
    ),
}  # fmt: skip
"""Top-level attributes of what is written, beyond those of patient and study that a source may have besides."""

_NOTES = {
    SegmentationStorage: "BINARY, one segment for each foreground class; Segment Algorithm Type AUTOMATIC. Empty frames"
    " are left out unless all are.",
    ParametricMapStorage: "Two series: epistemic and aleatoric uncertainty, Float Pixel Data, nats, on every voxel of"
    " the source; frames ascend along the slice normal.",
    Comprehensive3DSRStorage: "TID 1500 with TID 1411 for each segment (volume, interval, standard deviation) and TID"
    " 1501 for the whole case (score, route, reason). Completion Flag COMPLETE, Verification Flag UNVERIFIED,"
    " Preliminary Flag PRELIMINARY. Predecessor Documents where it replaces a report that was sent.",
}
_AIR = (
    ("Segmentation", SegmentationStorage, "Regions"),
    ("Uncertainty map", ParametricMapStorage, "Parametric maps"),
    ("Volumes, probabilities, score", Comprehensive3DSRStorage, "Measurements (TID 1411, TID 1501)"),
    ("Route and reason", Comprehensive3DSRStorage, "Qualitative findings (TID 1501)"),
    ("All of a decision", Comprehensive3DSRStorage, "Root result object (TID 1500)"),
)


def statement(settings: Settings) -> str:
    """Markdown."""
    return "\n".join(line for part in (_overview, _networking, _rest) for line in part(settings)) + "\n"


def _overview(settings: Settings) -> Iterator[str]:
    yield f"""# DICOM Conformance Statement: Equipoise gateway {__version__}

Printed by `equipoise gateway gateway.toml --conformance` from what the code negotiates and writes; layout of
DICOM PS3.2. Research software, not a medical device.

## 1 Conformance Statement Overview

The gateway takes images, has them analysed, and stores a segmentation, maps of uncertainty and a report in the
same study.
"""
    yield from _table(
        ("Service", "User (SCU)", "Provider (SCP)"),
        [
            ("Verification", "no", _yes(settings.receive is not None)),
            ("Storage of images", "no", _yes(settings.receive is not None)),
            *((UID(each).name, _yes(bool(settings.deliver.host) and _sent(settings, each)), "no") for each in CREATED),
            ("STOW-RS", _yes(bool(settings.deliver.stow_url)), "no"),
            ("QIDO-RS, WADO-RS (instances)", _yes(settings.dicomweb is not None), "no"),
            ("Query/Retrieve: C-FIND, C-MOVE (Study Root)", _yes(settings.retrieve is not None), "no"),
            ("C-GET, worklists, UPS-RS, media", "no", "no"),
        ],
    )


def _networking(settings: Settings) -> Iterator[str]:
    yield """## 2 Table of contents

3 Introduction; 4 Networking; 5 Media interchange; 6 Support of character sets; 7 Security; 8 Annexes.

## 3 Introduction

For those who connect the gateway to modalities and archives. Terms are those of DICOM PS3.

## 4 Networking

### 4.1 Implementation model

One application entity receives images. When a study has been quiet for a time, its series are chosen by rules and
analysed; results are sent when the audit log holds the decision. A repeat gives the same UIDs.

### 4.2 Application entity: receiver (Storage SCP)
"""
    receive = settings.receive
    if receive is None:
        yield "Not configured.\n"
    else:
        yield from _table(
            ("Property", "Value"),
            [
                ("AE title", f"`{receive.aet}`, must be called by this name"),
                ("Port", str(receive.port)),
                ("Calling AE titles", ", ".join(f"`{each}`" for each in receive.callers) or "any"),
                ("Associations at once", str(receive.associations)),
                ("Maximum PDU size", f"{PDU} bytes"),
                ("Largest object", f"{settings.largest_megabytes:g} MB; the association is aborted beyond it"),
                ("Asynchronous operations", "none"),
                ("Role selection, extended negotiation", "none"),
            ],
        )
        yield "Accepted presentation contexts: each SOP class below with each transfer syntax below.\n"
        yield "Transfer syntaxes, those whose pixels can be unpacked in this installation:\n"
        yield from _table(("Transfer syntax", "UID"), [(each.name, f"`{each}`") for each in syntaxes()])
        yield "SOP classes that are kept and analysed:\n"
        accepted = [Verification, *(each.abstract_syntax or "" for each in AllStoragePresentationContexts)]
        images = [UID(each) for each in accepted if "Image Storage" in UID(each).name]
        yield from _table(("SOP class", "UID"), [(each.name, f"`{each}`") for each in images])
        yield (
            f"Verification (`{Verification}`) is answered. The other {len(accepted) - len(images) - 1} storage classes"
            " of the standard (reports, segmentations, presentation states, …) are accepted, acknowledged, and not"
            " kept: so that a result that is sent back sets off no analysis.\n"
        )
        yield "Status codes of C-STORE:\n"
        yield from _table(
            ("Status", "Meaning", "Then"),
            [
                (_hex(SUCCESS), "the object is on the disk, or was known", "-"),
                (_hex(OUT_OF_RESOURCES), "no room, or the gateway stops", "send it again later"),
                (_hex(CANNOT_UNDERSTAND), "malformed; kept aside, its series is incomplete", "send a good copy"),
                (_hex(PROCESSING_FAILURE), "unexpected error", "send it again"),
            ],
        )
    yield "### 4.3 Application entity: sender (Storage SCU)\n"
    deliver = settings.deliver
    if not deliver.host:
        yield "Not configured; results go by STOW-RS.\n"
    else:
        yield from _table(
            ("Property", "Value"),
            [
                ("AE title", f"`{deliver.caller}`"),
                ("Sends to", f"`{deliver.aet}` at `{deliver.host}:{deliver.port}`"),
                ("Associations", "one for each object"),
                ("Attempts", f"{deliver.attempts} for each object; {deliver.away_hours:g} hours while nobody answers"),
            ],
        )
    yield "Presentation contexts proposed, for each object its own:\n"
    proposed = ", ".join(f"{each.name} (`{each}`)" for each in PLAIN)
    yield from _table(
        ("SOP class", "UID", "Transfer syntaxes", "Sent"),
        [(UID(each).name, f"`{each}`", proposed, _yes(_sent(settings, each))) for each in CREATED],
    )
    yield (
        f"Success: 0x0000, warnings 0xB000 to 0xBFFF, and {_hex(DUPLICATE)} (the archive holds it). Out of resources"
        " (0xA700 to 0xA7FF), or an association that ends without an answer: sent again later."
        f" {' or '.join(map(_hex, NO_KIND))}, or no accepted context: this kind of object is not tried again for this"
        " result; the others are sent. Anything else: tried again, then given up and shown to a person.\n"
    )
    yield from _query_retrieve(settings)
    yield "### 4.5 DICOMweb\n"
    yield from _table(
        ("Service", "Server", "What is asked"),
        [
            ("STOW-RS", _host(deliver.stow_url), "one instance a request, `multipart/related; type=application/dicom`"),
            (
                "QIDO-RS",
                _host(settings.dicomweb.url if settings.dicomweb else ""),
                "studies by the configured query and Study Date; their series and instances",
            ),
            (
                "WADO-RS",
                _host(settings.dicomweb.url if settings.dicomweb else ""),
                "whole instances, any transfer syntax",
            ),
        ],
    )


def _query_retrieve(settings: Settings) -> Iterator[str]:
    retrieve, receive = settings.retrieve, settings.receive
    yield "### 4.4 Application entity: Query/Retrieve (SCU)\n"
    if retrieve is None or receive is None:
        yield "Not configured.\n"
    else:
        yield from _table(
            ("Property", "Value"),
            [
                ("AE title", f"`{retrieve.caller}`"),
                ("Asks", f"`{retrieve.aet}` at `{retrieve.host}:{retrieve.port}`, every {retrieve.every_seconds:g} s"),
                ("C-MOVE destination", f"`{receive.aet}`, the receiver of 4.2"),
                ("Associations", "one for each C-FIND and each C-MOVE, one after the other"),
            ],
        )
    yield from _table(
        ("SOP class", "UID", "Level", "Keys"),
        [
            (Find.name, f"`{Find}`", "STUDY", "Study Date and the configured query; Study Instance UID"),
            ("", "", "SERIES", "Series Instance UID, Modality, Number of Series Related Instances"),
            ("", "", "IMAGE", "SOP Instance UID, SOP Class UID"),
            (Move.name, f"`{Move}`", "SERIES", "Study and Series Instance UID"),
        ],
    )
    proposed = ", ".join(each.name for each in build_context(Find).transfer_syntax)
    yield (
        f"Transfer syntaxes proposed: {proposed}. A series is moved when images are listed that are not here. What was"
        " listed and does not come makes it incomplete; it is asked for again later.\n"
    )


def _rest(settings: Settings) -> Iterator[str]:
    receive, deliver, asks = settings.receive, settings.deliver, settings.retrieve
    yield """## 5 Media interchange

None.

## 6 Support of character sets

Any Specific Character Set that pydicom decodes is read. Results are written in ISO_IR 192 (UTF-8), or without a
character set where all of their text is ASCII.

## 7 Security
"""
    yield from _table(
        ("Connection", "TLS (1.2 or later, PS3.15 annex B)"),
        [
            ("Receiver", _tls(bool(receive and receive.tls_cert), bool(receive and receive.tls_clients))),
            ("Query/Retrieve", _tls(bool(asks and (asks.tls_root or asks.tls_cert)), bool(asks and asks.tls_cert))),
            ("Sender, C-STORE", _tls(bool(deliver.tls_root or deliver.tls_cert), bool(deliver.tls_cert))),
            ("Sender, STOW-RS", _tls(deliver.stow_url.startswith("https:"), bool(deliver.tls_cert))),
        ],
    )
    yield "## 8 Annexes\n\n### 8.1 IOD contents of created instances\n"
    for each in CREATED:
        yield f"#### {UID(each).name}\n\n{_NOTES[each]}\n\nAttributes: {', '.join(ATTRIBUTES[each])}.\n"
    yield (
        "Patient and study are the source's, as far as it has them; dates and other attributes that DICOM does not"
        " allow so are corrected or emptied. Content Date and Time are the source's. UIDs are derived from the decision"
        " (2.25, PS3.5 B.2). No private attributes are written.\n"
    )
    yield f"### 8.2 Coded terminology\n\nPrivate coding scheme `{codes.SCHEME}`, identified in each object:\n"
    private = [
        codes.CASE_SCORE,
        codes.ROUTE,
        *codes.ROUTES.values(),
        codes.REASON,
        codes.INTENDED_USE,
        codes.PROBABILITY,
        codes.SAMPLED_PROBABILITY,
    ]
    private += [codes.EPISTEMIC, codes.ALEATORIC, codes.WHOLE_CASE]
    yield from _table(("Code", "Meaning"), [(f"`{each.value}`", each.meaning) for each in private])
    yield "### 8.3 IHE AI Results (AIR)\n\nThe gateway is an Evidence Creator:\n"
    yield from _table(
        ("Result", "Object", "Result primitive"), [(what, UID(each).name, name) for what, each, name in _AIR]
    )
    yield (
        "No IHE Connectathon was attended. AI Workflow for Imaging (UPS-RS) is not supported: no server that offers it"
        " was at hand. HL7 v2 messages (ORU^R01) are described in deploy/docs/hl7.md."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _sent(settings: Settings, sop_class: str) -> bool:
    return kind_of(sop_class) in settings.deliver.objects


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _hex(code: int) -> str:
    return f"0x{code:04X}"


def _tls(encrypted: bool, mutual: bool) -> str:
    return f"yes, with client certificates: {_yes(mutual)}" if encrypted else "no"


def _host(url: str) -> str:
    return f"`{urlsplit(url).netloc}`" if url else "not configured"
