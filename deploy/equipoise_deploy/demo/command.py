"""The verb `equipoise demo`: serves the reference models and decides on real images by `equipoise predict`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from equipoise_client.prediction import in_words
from rich.console import Console
from rich.table import Table

from ..cli import exits_on
from ..ports import Ports
from ..serving.readiness import check_readiness
from ..serving.server import TritonServer
from .cases import DemoCase, demo_cases
from .checks import failed_checks
from .page import write_page

EPILOG = """[bold]Example[/]

equipoise demo /opt/equipoise/models --out /tmp/demo

Exit code: 0 every check holds, 1 not."""

ROUTE_STYLE = {"accept": "bold green", "review": "bold yellow", "reject": "bold red"}


def demo(
    repository: Annotated[Path, typer.Argument(help="Model repository with the reference models.")] = Path(
        "model_repository"
    ),
    out: Annotated[Path, typer.Option(help="Folder for inputs, pictures and index.html.")] = Path("build/demo"),
) -> None:
    """Serve the three reference models and decide on real images."""
    with exits_on():
        failures = run_demo(repository, out)
    raise typer.Exit(1 if failures else 0)


def run_demo(repository: Path, out: Path) -> list[str]:
    """The checks that do not hold, in words.

    Args:
        repository: with the three reference models.
        out: folder for inputs, pictures and the page.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    cases = demo_cases(out / "inputs")
    with console.status("starting Triton"), TritonServer(repository, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        console.print(f"Triton serves {', '.join(server.models)} on {server.grpc_url} (gRPC), {server.http_url} (HTTP)")
        decisions = [decision for model in server.models for decision in _predict(server.grpc_url, model, cases, out)]
    (out / "decisions.json").write_text(json.dumps(decisions, indent=1) + "\n", encoding="utf-8")
    write_page(out / "index.html", decisions)
    console.print(_table(decisions))
    console.print(f"decisions: {out / 'decisions.json'}\npage:      {out / 'index.html'}")
    failures = list(failed_checks(decisions))
    for failure in failures:
        console.print(f"[bold red]not as expected:[/] {failure}")
    return failures


def _predict(url: str, model: str, cases: tuple[DemoCase, ...], out: Path) -> list[dict[str, Any]]:
    """Decisions on the model's cases, sent as a user would send them, each with what the demo knows about the image."""
    own = [case for case in cases if case.model == model]
    command = [str(Path(sys.executable).with_name("equipoise")), "predict", model, *(str(case.path) for case in own)]
    # Exit code 1: a file has no decision. The checks name it.
    run = subprocess.run([*command, "--url", url, "--json", "--out", str(out)], stdout=subprocess.PIPE, check=False)
    return [
        {
            **answer,
            "image": case.path.name,
            "title": case.title,
            "expectation": case.expectation,
            "must_not_accept": case.must_not_accept,
            "must_be": case.must_be,
            "atlas_ml": case.atlas_ml,
        }
        for case, answer in zip(own, json.loads(run.stdout), strict=True)
    ]


def _table(decisions: list[dict[str, Any]]) -> Table:
    table = Table(title="Decisions on real images", title_justify="left")
    for name in ("model", "image", "route", "score", "measured", "atlas", "reason"):
        table.add_column(name, overflow="fold", no_wrap=name in ("route", "score"))
    for decision in decisions:
        route = decision["route"]
        table.add_row(
            decision["model"],
            decision["title"],
            f"[{ROUTE_STYLE[route]}]{route}[/]",
            "" if decision["case_score"] is None else f"{decision['case_score']:.3f}",
            _measured(decision),
            "" if decision["atlas_ml"] is None else f"{decision['atlas_ml']:.2f} mL",
            decision["reason"],
        )
    return table


def _measured(decision: dict[str, Any]) -> str:
    """The volume with its interval, or the probability of the last class."""
    total = decision.get("volume_total")
    if total and total["mean"] is not None:
        return f"{total['mean']:.2f} mL ({total['low']:.2f} to {total['high']:.2f})"
    probabilities = decision.get("probability")
    if probabilities:
        name, figures = list(probabilities.items())[-1]
        return f"{name} {in_words(figures)}"
    return ""
