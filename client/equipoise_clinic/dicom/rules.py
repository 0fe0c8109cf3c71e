"""Which series of a study go to which model: a small TOML file.

    [[series]]
    model = "hippocampus"
    modality = "MR"
    description = "hippo"        # regular expression, searched in Series Description, case ignored
    plane = "axial"              # or "coronal", "sagittal"
    minimum_slices = 20
    view = "PA"                  # View Position of a radiograph; without it a frontal one is taken before a lateral one
    body_part = "BRAIN"          # for results, where the images do not state theirs
    group = "ManufacturerModelName"  # attribute (one of GROUPS) that names the group, for a policy certified by group
    ignore_counts = false        # true: a scanner whose Images in Acquisition or Instance Numbers are known to be wrong

    [segments.hippocampus]       # codes of the classes, where there are better ones than "anatomical structure"
    anterior = { scheme = "SCT", value = "5366008", meaning = "Hippocampus" }

Of several rules for one model the first that fits a series is used. Each model gets at most one series of a study.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from equipoise_client.errors import InvalidInput
from msgspec.structs import asdict

from ..toml_file import Strict, read_toml

PLANES = ("sagittal", "coronal", "axial")
"""By the patient's axis (left-right, front-back, feet-head) that is nearest to the slices' normal."""

GROUPS = (
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "StationName", "InstitutionName",
    "MagneticFieldStrength", "ConvolutionKernel", "PatientSex",
)  # fmt: skip
"""DICOM keywords of attributes that may go to the server as a group: none of them says who the patient is."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Code(Strict, frozen=True):
    """A coded concept, as DICOM has them."""

    scheme: str
    value: str
    meaning: str


class _Entry(Strict, frozen=True):
    """One [[series]]."""

    model: str
    modality: str = ""
    description: str = ""
    plane: str = ""
    minimum_slices: int = 1
    view: str = ""
    ignore_counts: bool = False
    body_part: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if not _MODEL_NAME.fullmatch(self.model):
            raise InvalidInput(f"model = {self.model!r}; expected the name of a public model")
        if self.plane not in ("", *PLANES):
            raise InvalidInput(f"plane = {self.plane!r}; expected one of {', '.join(PLANES)}")
        if self.minimum_slices < 1:
            raise InvalidInput(f"minimum_slices = {self.minimum_slices}; expected 1 or more")
        if self.group not in ("", *GROUPS):
            raise InvalidInput(f"group = {self.group!r}; expected one of {', '.join(GROUPS)}")
        try:
            re.compile(self.description)
        except re.error as error:
            raise InvalidInput(f"description = {self.description!r} is not a regular expression: {error}") from error

    def describes(self, description: str) -> bool:
        """Whether a Series Description fits."""
        return re.search(self.description, description, re.IGNORECASE) is not None


class Rule(_Entry, frozen=True):
    """Conditions that a series must meet for a model; an empty field is no condition.

    Attributes:
        segments: class → its code.
    """

    segments: Mapping[str, Code] = {}


class _File(Strict, frozen=True):
    series: tuple[_Entry, ...] = ()
    segments: Mapping[str, Mapping[str, Code]] = {}


@dataclass(frozen=True)
class Rules:
    """All rules, in order."""

    series: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if not self.series:
            raise InvalidInput("no rule is given; expected at least one [[series]] with a model")

    @classmethod
    def load(cls, path: Path) -> Rules:
        """Reads the file; raises InvalidInput that says what is wrong in it."""
        file = read_toml(Path(path), _File)
        rules = [Rule(**asdict(entry), segments=file.segments.get(entry.model, {})) for entry in file.series]
        try:
            if unused := set(file.segments) - {rule.model for rule in rules}:
                raise InvalidInput(f"[segments.{min(unused)}]: no series goes to a model of that name")
            return cls(tuple(rules))
        except InvalidInput as error:
            raise InvalidInput(f"{Path(path).name}: {error}") from None

    @classmethod
    def for_model(cls, model: str) -> Rules:
        """Any series, whatever it is, to one model."""
        return cls((Rule(model),))
