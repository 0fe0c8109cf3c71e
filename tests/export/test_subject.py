"""What the images showed goes from the export's options into the contract."""

from __future__ import annotations

from typing import Any

import pytest
from equipoise_core.contract import Subject
from equipoise_export.draft import Description
from equipoise_export.errors import SpecError
from equipoise_export.options import Sizes

STATED = {"name": "a", "task": "classification", "shape": (1, 8, 8), "classes": ("no", "yes")}


def subject_of(**stated: Any) -> Subject | None:
    return Description.read({**STATED, **stated}).contract(Sizes.FIXED).subject


def test_it_is_in_the_contract() -> None:
    assert subject_of() is None
    stated = subject_of(body_parts=["CHEST"], views=["PA", "AP"], ages=[1, 5], optional=["age"])
    assert stated == Subject(("CHEST",), ("PA", "AP"), (), (1.0, 5.0), ("age",))


@pytest.mark.parametrize("wrong", [{"ages": (5, 1)}, {"ages": (5,)}, {"optional": ["weight"]}, {"views": "PA"}])
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        subject_of(**wrong)
