"""Options of every verb that takes labelled cases: one spelling, one meaning, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Spacing = Annotated[str | None, typer.Option(help="mm per axis for files that state none (1,1,1.2).")]
LabelValues = Annotated[
    str | None, typer.Option(help="Labels that make each class (wt=1,2,3; et=3); by default indices or names.")
]
LeaveOut = Annotated[
    Path | None, typer.Option(help="OUT.cases.csv of `equipoise train`: what it was trained on is left out.")
]
