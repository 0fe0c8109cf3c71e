"""Progress is shown on a terminal, and nowhere else; each phase is timed."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from equipoise_core.contract import Task
from equipoise_export import Options, export, inspect
from equipoise_export.compile import compile_sampler
from equipoise_export.progress import LOGGER, Phase, phase, shown
from rich.console import Console
from torch import nn

from ..support.graphs import contract
from ..support.networks import Classifier


@pytest.mark.parametrize("terminal", [True, False])
def test_stages_are_shown_on_a_terminal_only(terminal: bool) -> None:
    """A file or a pipe gets none of it; afterwards the logger is as it was."""
    text = io.StringIO()
    before = LOGGER.level
    with shown(Console(file=text, force_terminal=terminal)), phase("sampler"), phase("tracing the network"):
        pass
    assert ("sampler, tracing the network …" in text.getvalue()) is terminal
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


def names(phases: list[Phase]) -> list[str]:
    return [each.name for each in phases]


def test_phases_nest_and_a_failed_one_is_timed_too() -> None:
    """What is inside takes no longer than what is around it, on the clock and on the processor."""
    with pytest.raises(ZeroDivisionError), phase("all") as whole:
        with phase("one"), phase("inner"):
            pass
        with phase("two"):
            raise ZeroDivisionError
    assert names(whole.phases) == ["one", "two"] and names(whole.phases[0].phases) == ["inner"]
    assert whole.seconds >= sum(each.seconds for each in whole.phases) > 0
    assert whole.peak >= whole.phases[0].peak > 0
    with phase("after") as after:
        pass
    assert names(whole.phases) == ["one", "two"] and not after.phases


def test_a_decorated_function_is_a_phase_each_time() -> None:
    @phase("work")
    def work() -> int:
        return 1

    with phase("all") as whole:
        assert work() + work() == 2
    assert names(whole.phases) == ["work", "work"]


def test_an_export_says_how_long_each_phase_took(tmp_path: Path) -> None:
    """Tracing, every pass and the proof; as a table and as a document."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(4, 2, 1))
    given: dict[str, Any] = {"name": "tiny", "task": "segmentation", "classes": ["background", "x"]}
    example = torch.randn(2, 1, 8, 8)
    timings = export(network, into=tmp_path, example=example, options=Options(first_pass=False), **given).timings
    assert names(timings.phases)[:2] == ["reading", "sampler"] and names(timings.phases)[-1] == "publishing"
    (attempt,) = (each for each in timings.phases[1].phases if each.name == "for several sizes")
    steps = names(attempt.phases)
    assert steps[:3] == ["running the network", "tracing the network", "compiling"] and "proving in fp32" in steps
    assert "split concat" in names(attempt.phases[2].phases)
    assert timings.document()["phases"][1]["phases"][0]["phases"][2]["name"] == "compiling"
    text = io.StringIO()
    Console(file=text, width=120).print(timings)
    assert "split concat" in text.getvalue() and "share" in text.getvalue()
    looked = inspect(network, example=example, **given).timings
    assert names(looked.phases) == ["reading", "for several sizes"] and "compiling" in names(looked.phases[1].phases)
