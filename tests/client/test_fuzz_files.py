"""Two thousand malformed DICOM, NIfTI and PNG files to the client and to the gateway.

A plain run takes a seeded share, the whole is marked `slow`. Files are read in a process of their own, with a limit of
time for each and of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ..support.damaged_files import MEMORY, SECONDS, made
from ..support.studies import PLANTED

ROOT = Path(__file__).parents[2]
FILES = {"dicom": 600, "nifti": 400, "raster": 400, "gateway": 600}
SAMPLE = 0.04
PEAK = 1500
"""MB that a file of less than 1 MB may make the process take. Allowed are 89 million pixels of a PNG (Pillow's bound),
which take 360 MB as float32 and as much again while they are turned."""

ERRORS = {"dicom": {"UnreadableImage"}, "nifti": {"UnreadableImage"}, "raster": {"UnreadableImage"}}
SECRETS = [value[at : at + 8] for value in PLANTED.values() for at in range(max(1, len(value) - 7))]


def read_all(kind: str, number: int, folder: Path) -> list[dict[str, Any]]:
    """One outcome per file; a file that ends its process is an outcome, and the next process goes on behind it."""
    outcomes: list[dict[str, Any]] = []
    first = 0
    while first < number:
        place = folder / f"from{first}"
        place.mkdir()
        command = [sys.executable, "-m", "tests.support.damaged_files", kind, str(first), str(number), str(place)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        outcomes += [line for line in lines if "told" in line]
        assert lines, done.stderr
        if done.returncode == 0:
            break
        begun = lines[-1]["number"]
        assert "told" not in lines[-1], done.stderr
        why = f"no end within {SECONDS} s" if done.returncode == -14 else f"the process ended with {done.returncode}"
        nothing = {"told": "", "studied": "", "peak": 0, "seconds": 0.0}
        outcomes.append({"number": begun, "wrong": f"{why}: {done.stderr[-300:]}", **nothing})
        first = begun + 1
    return outcomes


@pytest.mark.parametrize(
    "share", [pytest.param(SAMPLE, id="sample"), pytest.param(1.0, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", FILES)
def test_a_malformed_file_is_an_error_in_words(kind, share, tmp_path):
    """An image all the same, or one of the errors that are documented; in time, in bounds, without a patient's name."""
    number = round(FILES[kind] * share)
    outcomes = read_all(kind, number, tmp_path)
    assert [each["number"] for each in outcomes] == list(range(number))
    wrong = [f"{kind} {each['number']}: {each['wrong']}" for each in outcomes if each["wrong"]]
    wrong += [f"{kind} {each['number']}: {told}" for each in outcomes if (told := _misspoken(kind, each))]
    assert not wrong, "\n".join(wrong[:30])
    peak = max(each["peak"] for each in outcomes)
    assert peak < PEAK, f"{peak} MB"
    counts = Counter(each["told"].split(":")[0].split(",")[0] for each in outcomes)
    print(f"{kind}: {number} files, {dict(counts)}, peak {peak} MB, {max(each['seconds'] for each in outcomes):.1f} s")
    if kind == "gateway":
        assert counts["aside"] > number / 10, counts
    else:
        assert counts["UnreadableImage"] > number / 10, counts


def _misspoken(kind: str, outcome: dict[str, Any]) -> str:
    """What is wrong with the words of an outcome, or ""."""
    told = outcome["told"] + outcome["studied"]
    leaked = [secret for secret in SECRETS if secret in told]
    if leaked:
        return f"names a patient: {leaked[0]}"
    if "Traceback" in told:
        return "a traceback"
    name = outcome["told"].split(":")[0]
    if kind in ERRORS and name != "image" and name not in ERRORS[kind]:
        return f"{name} is not what `read_image` says it raises"
    if kind in ERRORS and name != "image" and ("case." not in outcome["told"] or len(outcome["told"]) > 600):
        return f"does not name the file, or says too much: {outcome['told'][:200]}"
    return ""


def test_the_same_number_is_the_same_file():
    """Or nothing that was found could be found again."""
    for kind in FILES:
        assert [made(kind, 7), made(kind, 8)] == [made(kind, 7), made(kind, 8)]
    assert MEMORY > 2**31, "the largest image that is let through has to fit"
