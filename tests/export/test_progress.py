"""Progress is shown on a terminal, and nowhere else."""

from __future__ import annotations

import io
import logging

import pytest
import torch
from equipoise_core.contract import Task
from equipoise_export.compile import compile_sampler
from equipoise_export.progress import LOGGER, shown
from rich.console import Console

from ..support.graphs import contract
from ..support.networks import Classifier


@pytest.mark.parametrize("terminal", [True, False])
def test_stages_are_shown_on_a_terminal_only(terminal: bool) -> None:
    """A file or a pipe gets none of it; afterwards the logger is as it was."""
    text = io.StringIO()
    before = LOGGER.level
    with shown(Console(file=text, force_terminal=terminal)):
        LOGGER.info("%s: tracing the network", "small")
    assert ("small: tracing the network …" in text.getvalue()) is terminal
    assert LOGGER.level == before and not LOGGER.handlers


def test_every_stage_is_logged_as_it_begins(caplog: pytest.LogCaptureFixture) -> None:
    """Compiling again, stage by stage: passes and proof."""
    torch.manual_seed(0)
    draft = contract(task=Task.CLASSIFICATION, classes=3, spatial=(16, 16))
    with caplog.at_level(logging.INFO, logger=LOGGER.name):
        compile_sampler(Classifier(), draft, torch.randn(2, 1, 16, 16))
    logged = [record.getMessage() for record in caplog.records if record.name == LOGGER.name]
    for stage in ("running the network", "tracing the network", "compiling, split concat", "every site matters"):
        assert any(stage in line for line in logged), stage
