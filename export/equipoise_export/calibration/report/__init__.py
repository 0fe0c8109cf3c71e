"""The calibration report: one HTML file with everything in it, no script and nothing from the network.

`SECTIONS` is the report at a glance: a new section is a function and a line.
"""

from collections.abc import Callable, Sequence

from ...progress import phase
from .case_table import write_cases
from .examples import show_examples
from .findings import Findings, rendered
from .plots import plots
from .promises import guarantees, promises
from .shown import examples
from .statistics import corrupted, examined, groups, measured, rates, recalibrated
from .summary import glossary, summary

__all__ = ["SECTIONS", "Findings", "guarantees", "render_report", "show_examples", "write_cases"]

SECTIONS: Sequence[tuple[str, Callable[[Findings], str]]] = (
    ("In plain words", summary),
    ("Cases to look at", examples),
    ("Words", glossary),
    ("What is guaranteed", promises),
    ("Whether the cases can be trusted", examined),
    ("What was measured", measured),
    ("Recalibration", recalibrated),
    ("When images get worse", corrupted),
    ("Plots", plots),
    ("By group", groups),
    ("Dropout rate", rates),
)
"""Titles and what writes them, as HTML; a section that has nothing to say is empty and left out."""


@phase("writing the report")
def render_report(found: Findings) -> str:
    """HTML."""
    written = [(title, section(found)) for title, section in SECTIONS]
    policy = found.policy
    sections = [(title, html) for title, html in written if html]
    return rendered("page", name=found.contract.name, policy=policy, digest=policy.digest, sections=sections)
