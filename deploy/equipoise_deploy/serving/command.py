"""The verb `equipoise serve`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..cli import exits_on
from ..errors import DeployError
from ..ports import LOOPBACK, USUAL_PORTS, Ports
from .container import IMAGE, find_container_engine
from .device import DEVICE_VARIABLE, Device
from .engine import find_engine
from .health import USUAL_PORT
from .monitor import HUNG_AFTER
from .serve import Listening, serve, serve_in_container
from .settings import NONE, load_settings
from .supervisor import Plan


class EngineChoice(str, Enum):
    """Which Triton serves."""

    AUTO = "auto"
    EMBEDDED = "embedded"
    CONTAINER = "container"


def serve_command(
    repository: Annotated[Path, typer.Argument(help="Folder of published models.")] = Path("model_repository"),
    grpc_port: Annotated[int, typer.Option(help="0 picks a free one.")] = USUAL_PORTS.grpc,
    http_port: Annotated[int, typer.Option(help="0 picks a free one.")] = USUAL_PORTS.http,
    metrics_port: Annotated[int, typer.Option(help="0 picks a free one.")] = USUAL_PORTS.metrics,
    health_port: Annotated[
        int, typer.Option(help="GET /healthz there: does every served model answer? 0 picks a free one.")
    ] = USUAL_PORT,
    address: Annotated[
        str, typer.Option(help="Where gRPC, metrics and health listen. It is not encrypted: restrict who can reach it.")
    ] = LOOPBACK,
    drain_seconds: Annotated[
        float, typer.Option(min=0.0, help="Between 503 on the health port and the stop, for a proxy to notice.")
    ] = 2.0,
    restarts: Annotated[
        int, typer.Option(min=0, help="Restarts of a failing server within ten minutes; then exit 3.")
    ] = 5,
    quiet_seconds: Annotated[
        float,
        typer.Option(min=1.0, help="A model that neither answers nor makes progress for so long counts as hung."),
    ] = HUNG_AFTER,
    engine: Annotated[
        EngineChoice,
        typer.Option(
            help="embedded: the Triton of the Python wheel. container: NVIDIA's image on a GPU (this path "
            "was never executed by its authors, who had no GPU). auto: the container where both are there."
        ),
    ] = EngineChoice.AUTO,
    device: Annotated[
        Device,
        typer.Option(
            envvar=DEVICE_VARIABLE,
            help="Where the embedded server's samplers run. auto: on a GPU where one is visible and onnxruntime-gpu is "
            "installed. cuda: on a GPU, or not at all. Never run on a GPU by its authors, either.",
        ),
    ] = Device.AUTO,
    image: Annotated[str, typer.Option(help="Container image.")] = IMAGE,
    settings: Annotated[
        Path | None, typer.Option(help="This machine's settings, as `equipoise tune` writes them; embedded only.")
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Public key (PEM): serve only releases signed with it, see `equipoise publish`; embedded only."
        ),
    ] = None,
    close_on_alarm: Annotated[
        Path | None,
        typer.Option(
            envvar="EQUIPOISE_CLOSE_ON_ALARM",
            help="The audit log: where one of its monitors alarms, the model accepts nothing until a named person "
            "opens it again (`equipoise audit open`); embedded only.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="When ready, print one line of JSON to stdout.")] = False,
    quiet: Annotated[bool, typer.Option(help="Do not print Triton's log; failures still show it.")] = False,
) -> None:
    """Serve the models of REPOSITORY on this machine's loopback until SIGINT or SIGTERM.

    It is ready when every model has answered a health probe, a synthetic image. A model that does not is not served;
    the others are. A probe follows every two seconds. Dead
    or hung processes are restarted. On SIGHUP it serves what REPOSITORY holds then. Production: see deploy/.
    """
    out, err = Console(), Console(stderr=True)

    def on_log(line: str) -> None:
        if not quiet:
            err.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    def report(line: str) -> None:
        err.print(f"equipoise: {line}", markup=False, highlight=False, soft_wrap=True)

    def on_ready(listening: Listening) -> None:
        if as_json:
            typer.echo(json.dumps(asdict(listening)))
        else:
            out.print(_table(listening))
            out.print("Stop with Ctrl-C.")

    ports = Ports(grpc_port, http_port, metrics_port)
    with exits_on():
        own = load_settings(settings)[0] if settings is not None else NONE
        wants_container = engine is EngineChoice.CONTAINER or (engine is EngineChoice.AUTO and device is Device.AUTO)
        program = find_container_engine() if wants_container else None
        if engine is EngineChoice.CONTAINER and device is Device.CPU:
            raise DeployError("the container serves on a GPU; --device cpu is for --engine embedded")
        if program is not None and own:
            raise DeployError("--settings are applied by the embedded server only; use --engine embedded")
        if program is not None and trust is not None:
            raise DeployError(
                "--trust is for the embedded server; for a container: equipoise releases --trust --stage DIR"
            )
        if program is not None and close_on_alarm is not None:
            raise DeployError("--close-on-alarm is for the embedded server; use --engine embedded")
        if program is not None:
            serve_in_container(program, image, repository, ports, on_log, on_ready)
        elif engine is EngineChoice.CONTAINER:
            raise DeployError("no GPU with a container engine (docker, podman) here; use --engine embedded")
        else:
            embedded = find_engine({**os.environ, DEVICE_VARIABLE: device.value})
            report(embedded.reason)
            plan = Plan(
                repository, ports, own, address, drain_seconds, restarts, quiet_seconds, trust, embedded, close_on_alarm
            )
            serve(plan, health_port, on_log, on_ready, report)


def _table(listening: Listening) -> Table:
    title = f"Ready after {listening.seconds:.1f} s"
    table = Table("model", "largest variance of a synthetic image", title=title, title_justify="left")
    for probe in listening.probes:
        table.add_row(probe.model, probe.words)
    for model, why in listening.left_out.items():
        table.add_row(f"[red]{escape(model)}[/red]", f"[red]NOT READY, not served[/red]: {escape(why)}")
    table.caption = f"gRPC {listening.grpc} · HTTP {listening.http} · metrics {listening.metrics}"
    if listening.health:
        table.caption += f" · health {listening.health}"
    return table
