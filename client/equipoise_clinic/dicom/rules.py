"""Which series of a study go to which model: a small TOML file.

    [[series]]
    model = "hippocampus"
    modality = "MR"
    description = "hippo"        # regular expression, searched in Series Description, case ignored
    plane = "axial"              # or "coronal", "sagittal"
    minimum_slices = 20
    body_part = "BRAIN"          # for results, where the images do not state theirs

    [segments.hippocampus]       # codes of the classes, where there are better ones than "anatomical structure"
    anterior = { scheme = "SCT", value = "5366008", meaning = "Hippocampus" }

Of several rules for one model the first that fits a series is taken; each model gets at most one series of a study.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise_client.errors import InvalidInput
from equipoise_client.extras import needs

PLANES = ("sagittal", "coronal", "axial")
"""By the patient's axis (left-right, front-back, feet-head) that is nearest to the slices' normal."""

_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Code:
    """A coded concept, as DICOM has them."""

    scheme: str
    value: str
    meaning: str

    @classmethod
    def of(cls, name: str, entry: object) -> Code:
        """Of a class's entry in the file; raises InvalidInput where it is none."""
        if (
            not isinstance(entry, dict)
            or set(entry) != {"scheme", "value", "meaning"}
            or not all(isinstance(text, str) for text in entry.values())
        ):
            raise InvalidInput(f"{name} = {entry}; expected {{ scheme = TEXT, value = TEXT, meaning = TEXT }}")
        return cls(**entry)


@dataclass(frozen=True)
class Rule:
    """What a series has to be for a model; empty fields ask for nothing."""

    model: str
    modality: str = ""
    description: str = ""
    plane: str = ""
    minimum_slices: int = 1
    body_part: str = ""
    segments: Mapping[str, Code] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _MODEL_NAME.fullmatch(self.model):
            raise InvalidInput(f"model = {self.model!r}; expected the name of a public model")
        if self.plane not in ("", *PLANES):
            raise InvalidInput(f"plane = {self.plane!r}; expected one of {', '.join(PLANES)}")
        if self.minimum_slices < 1:
            raise InvalidInput(f"minimum_slices = {self.minimum_slices}; expected 1 or more")
        try:
            re.compile(self.description)
        except re.error as error:
            raise InvalidInput(f"description = {self.description!r} is no regular expression: {error}") from error

    def describes(self, description: str) -> bool:
        """Whether a Series Description fits."""
        return re.search(self.description, description, re.IGNORECASE) is not None


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
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            with needs("clinic", "reading series rules"):
                import tomli as tomllib
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{Path(path).name} cannot be read as TOML: {error}") from error
        try:
            return cls._of(document)
        except (InvalidInput, TypeError) as error:
            raise InvalidInput(f"{Path(path).name}: {error}") from error

    @classmethod
    def for_model(cls, model: str) -> Rules:
        """Any series, whatever it is, to one model."""
        return cls((Rule(model),))

    @classmethod
    def _of(cls, document: Mapping[str, Any]) -> Rules:
        unknown = set(document) - {"series", "segments"}
        if unknown:
            raise InvalidInput(f"unknown tables {sorted(unknown)}; expected [[series]] and [segments.MODEL]")
        entries, segments = document.get("series", []), document.get("segments", {})
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InvalidInput("series is no list of tables; expected [[series]], in double brackets, for each rule")
        if not isinstance(segments, dict) or not all(isinstance(classes, dict) for classes in segments.values()):
            raise InvalidInput("segments holds no table for each model; expected [segments.MODEL]")
        codes = {
            model: {name: Code.of(name, code) for name, code in classes.items()} for model, classes in segments.items()
        }
        known = {name: type(default) for name, default in vars(Rule("x")).items() if name != "segments"}
        rules = []
        for number, entry in enumerate(entries, start=1):
            for name, value in entry.items():
                if name not in known:
                    raise InvalidInput(f"series {number}: unknown key {name!r}; expected {', '.join(known)}")
                if type(value) is not known[name]:
                    raise InvalidInput(f"series {number}: {name} = {value!r}; expected a {known[name].__name__}")
            rules.append(Rule(**entry, segments=codes.get(entry.get("model", ""), {})))
        unused = set(codes) - {rule.model for rule in rules}
        if unused:
            raise InvalidInput(f"[segments.{min(unused)}]: no series goes to a model of that name")
        return cls(tuple(rules))
