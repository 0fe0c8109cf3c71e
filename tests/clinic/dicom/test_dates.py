"""Dates and times that anonymisers and old scanners write."""

from __future__ import annotations

import pytest
from equipoise_clinic.dicom.dates import da, tm


@pytest.mark.parametrize(
    ("given", "expected"),
    [("20200121", "20200121"), ("2020-01-21", "20200121"), ("2020.01.21", "20200121"), (" 20200121 ", "20200121"),
     ("19500000", ""), ("00000000", ""), ("ANONYMIZED", ""), ("1950", ""), ("20200230", ""), ("2020-0121", ""),
     ("", "")],
)  # fmt: skip
def test_dates(given: str, expected: str) -> None:
    assert da(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("010643", "010643"), ("01:06:43", "010643"), ("010643.1234567", "010643.123456"), ("0106", "0106"), ("01", "01"),
     ("010643.5", "010643.5"), ("246000", ""), ("016143", ""), ("noon", ""), ("", "")],
)  # fmt: skip
def test_times(given: str, expected: str) -> None:
    assert tm(given) == expected
