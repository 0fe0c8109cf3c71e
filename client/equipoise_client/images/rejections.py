"""Why a study cannot be used: one class for each reason, with its stable text."""

from __future__ import annotations

from ..errors import StudyRejected


class NothingReadable(StudyRejected):
    reason = "there is no DICOM image in it"


class DamagedInstance(StudyRejected):
    reason = "an instance is damaged or cut off"


class MixedStudies(StudyRejected):
    reason = "instances of several studies or patients are mixed"


class NoSeriesFits(StudyRejected):
    reason = "no series fits the rules"


class WrongModality(NoSeriesFits):
    reason = "no series has the modality that the rules ask for"


class WrongPlane(NoSeriesFits):
    reason = "no series is cut in the plane that the rules ask for"


class WrongView(NoSeriesFits):
    reason = "no image has the View Position that the rules ask for"


class TooFewSlices(NoSeriesFits):
    reason = "the series has too few slices"


class SeveralSeriesFit(StudyRejected):
    reason = "several series fit one rule"


class MissingSlices(StudyRejected):
    reason = "slices are missing"


class UnevenSlices(StudyRejected):
    reason = "slices are not evenly spaced"


class DuplicatePositions(StudyRejected):
    reason = "several slices lie at one position"


class GantryTilt(StudyRejected):
    reason = "slices are sheared (gantry tilt)"


class NotOneVolume(StudyRejected):
    reason = "slices do not belong to one volume"


class NoFrameOfReference(StudyRejected):
    reason = "the Frame of Reference UID is missing"


class NoGeometry(StudyRejected):
    reason = "positions, orientation or pixel spacing are missing"


class UnreadableSyntax(StudyRejected):
    reason = "the pixels are compressed in a way that cannot be read here"


class UnsuitableImage(StudyRejected):
    reason = "the model cannot take this image"


class ImagesDeleted(StudyRejected):
    reason = "earlier images of the series were deleted here since: send the whole series again"
