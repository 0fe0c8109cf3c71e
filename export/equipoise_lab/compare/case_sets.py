"""`--data` → the cases of a comparison: to choose each policy on, to measure on, and such as are unlike them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from equipoise_core.canonical import digest_of
from equipoise_core.contract import Contract, Task
from equipoise_export.calibration.cases import Labelled, check_scale
from equipoise_export.calibration.choose import deal_pilot
from equipoise_export.calibration.corruptions import Image, gaussian, rician
from equipoise_export.calibration.examine import check_apart
from equipoise_export.calibration.reading import labelled_cases, without
from numpy.typing import NDArray

from .errors import ComparisonError

PREFIX = "reference:"
HELD_OUT = 1 / 3
"""Share of the patients that is measured on, where no `--test` is given."""


@dataclass(frozen=True)
class CaseSets:
    """The cases that every model of a comparison sees, in this order.

    Attributes:
        pilot, calibration: what each model's policy is chosen on.
        test: what is measured on.
        shifted: images that are out of distribution; their truth is not looked at.
        shift: what they are, in words; "" without any.
        typical: further typical images, without labels, that say what inputs look like.
    """

    title: str
    pilot: Sequence[Labelled]
    calibration: Sequence[Labelled]
    test: Sequence[Labelled]
    shifted: Sequence[Labelled] = ()
    shift: str = ""
    typical: Sequence[NDArray[np.float32]] = ()

    @property
    def parts(self) -> Mapping[str, Sequence[Labelled]]:
        """The sets of cases by name."""
        return {"pilot": self.pilot, "calibration": self.calibration, "test": self.test, "shifted": self.shifted}


def gather(
    data: str,
    contract: Contract,
    test: Path | None = None,
    shifted: Path | None = None,
    pilot: float = 0.3,
    spacing: tuple[float, ...] | None = None,
    label_values: str | None = None,
    leave_out: Path | None = None,
) -> CaseSets:
    """Reads and deals the cases.

    Args:
        data: a path, as `equipoise calibrate` takes it, or `reference:NAME`.
        test: labelled cases to measure on, instead of a part of `data`.
        shifted: images that are out of distribution, labelled or not.
        pilot: share of the patients, beside those that are measured on, that only say where to look.
        spacing: mm per axis for files that state none.
        label_values: which labels make each class, as `wt=1,2,3; et=3`.
        leave_out: the table of `equipoise train`: what a model was trained on is left out of `data`.
    """
    if data.startswith(PREFIX):
        if leave_out is not None:
            raise ComparisonError(
                f"--leave-out with {data}: its parts are fixed; leave it out, or give the cases themselves as --data"
            )
        sets = reference_case_sets(data.removeprefix(PREFIX))
    else:
        held_out = 0.0 if test else HELD_OUT
        cases = without(labelled_cases(Path(data), contract, spacing, values=label_values), leave_out)
        sets = deal(Path(data).name, cases, held_out, pilot)
    if test is not None:
        cases = without(labelled_cases(test, contract, spacing, values=label_values), leave_out, others=True)
        sets = replace(sets, title=f"{sets.title}, measured on {test.name}", test=cases)
        if data.startswith(PREFIX) and shifted is None:  # they were made of the test cases that are now replaced
            sets = replace(sets, shifted=(), shift="")
        check_apart([*sets.pilot, *sets.calibration], sets.test)
    if shifted is not None:
        # Nameless patients of two archives are numbered alike: these are others, and are resampled on their own.
        images = [
            replace(case, patient=f"shifted: {case.patient}")
            for case in labelled_cases(shifted, contract, spacing, labels=False)
        ]
        sets = replace(sets, shifted=images, shift=f"the images of {shifted.name}")
    for name in ("pilot", "calibration", "test"):
        if not sets.parts[name]:
            raise ComparisonError(f"{sets.title}: no {name} cases are left; give more patients")
    labelled = [*sets.pilot, *sets.calibration, *sets.test]
    if any(case.spacing is not None for case in labelled):
        check_scale(contract, labelled)
    return sets


def deal(title: str, cases: Sequence[Labelled], held_out: float, pilot: float) -> CaseSets:
    """By patient, by the digests of their names: a share to measure on, and of the others a share as pilot."""
    patients = sorted({case.patient for case in cases}, key=lambda patient: digest_of(["test", patient]))
    tested = set(patients[: math.floor(held_out * len(patients))])
    rest = [case for case in cases if case.patient not in tested]
    if len({case.patient for case in rest}) < 2:
        raise ComparisonError(
            f"{title} holds {len(cases)} cases of {len(patients)} patients: too few to deal them by patient into "
            "pilot, calibration and test"
        )
    is_pilot = deal_pilot([case.patient for case in rest], pilot)
    return CaseSets(
        title,
        [case for case in rest if is_pilot[case.patient]],
        [case for case in rest if not is_pilot[case.patient]],
        [case for case in cases if case.patient in tested],
    )


Corrupt = Callable[[Image, np.random.Generator], Image]

CORRUPTIONS: Mapping[str, tuple[str, Corrupt]] = MappingProxyType(
    {
        "hippocampus": (
            "the test images under Rician noise of half their standard deviation",
            partial(rician, level=0.5),
        ),
        "pneumonia": (
            "the test images under Gaussian noise of half their standard deviation",
            partial(gaussian, level=0.5),
        ),
    }
)
"""How the test images of a reference data set are made worse, where there are no others that are unlike them."""


def reference_case_sets(name: str) -> CaseSets:
    """As `reference/build.py` deals them: training cases are the pilot, and say what inputs look like.

    Raises DataMissingError where the images are not there.
    """
    from ..reference.build import PILOT_CASES, spacing_of, truth_of  # loads torch
    from ..reference.data import load, load_shifted_nuclei, reference_split
    from ..reference.specs import REFERENCES

    if name not in REFERENCES:
        raise ComparisonError(f"no reference data named {name!r}; there are {', '.join(REFERENCES)}")
    data, reference = load(name), REFERENCES[name]
    split = reference_split(name, data.ids)
    spacing = spacing_of(reference)

    def cases(ids: Collection[str]) -> list[Labelled]:
        chosen = data.select(tuple(ids))
        return [
            Labelled(id_, id_, image, truth_of(reference, target), spacing)
            for id_, image, target in zip(ids, chosen.images, chosen.targets, strict=True)
        ]

    test = cases(split.test)
    if name in CORRUPTIONS:
        shift, corrupt = CORRUPTIONS[name]
        random = np.random.default_rng(0)
        shifted = [replace(case, image=corrupt(case.image, random=random)) for case in test]  # type: ignore[call-arg]
    else:
        shift, strange = "H&E-stained tissue instead of fluorescence", load_shifted_nuclei()
        shifted = [
            Labelled(id_, id_, image, truth_of(reference, target))
            for id_, image, target in zip(strange.ids, strange.images, strange.targets, strict=True)
        ]
    return CaseSets(
        f"reference data {name}",
        cases(split.train[: PILOT_CASES[Task(reference.task)]]),
        cases(split.calibration),
        test,
        shifted,
        shift,
        data.select(split.train).images,
    )
