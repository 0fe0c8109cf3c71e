"""Serves the repository's models, sends the demo's files through `equipoise predict`, and shows what came back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..ports import Ports
from ..serving.readiness import check_readiness
from ..serving.server import TritonServer
from .cases import DemoCase, demo_cases
from .checks import failed_checks
from .page import write_page

REPOSITORY = Path(__file__).resolve().parents[3]
OUT = REPOSITORY / "build" / "demo"
ROUTE_STYLE = {"accept": "bold green", "review": "bold yellow", "reject": "bold red"}


def main(repository: Path = REPOSITORY / "model_repository", out: Path = OUT) -> int:
    """Exit code 0: every check of `checks` holds.

    Args:
        repository: with the three reference models.
        out: folder for inputs, pictures and the page.
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    cases = demo_cases(out / "inputs")
    with (
        console.status("starting Triton"),
        TritonServer(repository, ports=Ports(0, 0, 0)) as server,
    ):
        check_readiness(server.grpc_url, server.models)
        console.print(f"Triton serves {', '.join(server.models)} on {server.grpc_url} (gRPC), {server.http_url} (HTTP)")
        decisions = [decision for model in server.models for decision in _predict(server.grpc_url, model, cases, out)]
    (out / "decisions.json").write_text(json.dumps(decisions, indent=1) + "\n", encoding="utf-8")
    write_page(out / "index.html", decisions)
    console.print(_table(decisions))
    console.print(f"decisions: {out / 'decisions.json'}\npage:      {out / 'index.html'}")
    failures = failed_checks(decisions)
    for failure in failures:
        console.print(f"[bold red]not as expected:[/] {failure}")
    return 1 if failures else 0


def _predict(url: str, model: str, cases: tuple[DemoCase, ...], out: Path) -> list[dict[str, Any]]:
    """The model's cases as a user would send them, each decision with what the demo knows about the image."""
    mine = [case for case in cases if case.model == model]
    command = [str(Path(sys.executable).with_name("equipoise")), "predict", model, *(str(case.path) for case in mine)]
    # Exit code 1 says that a file has no decision: the checks will name it.
    run = subprocess.run([*command, "--url", url, "--json", "--out", str(out)], stdout=subprocess.PIPE, check=False)
    return [
        {
            **answer,
            "image": case.path.name,
            "title": case.title,
            "expectation": case.expectation,
            "must_not_accept": case.must_not_accept,
            "atlas_ml": case.atlas_ml,
        }
        for case, answer in zip(mine, json.loads(run.stdout), strict=True)
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
            measured(decision),
            "" if decision["atlas_ml"] is None else f"{decision['atlas_ml']:.2f} mL",
            decision["reason"],
        )
    return table


def measured(decision: dict[str, Any]) -> str:
    """The volume with its interval, or the probability of the last class with its standard deviation."""
    total = decision.get("volume_total")
    if total and total["mean"] is not None:
        return f"{total['mean']:.2f} mL ({total['low']:.2f} to {total['high']:.2f})"
    probabilities = decision.get("probability")
    if probabilities:
        name, figures = list(probabilities.items())[-1]
        return f"{name} {figures['mean']:.2f} ± {figures['sd']:.2f}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
