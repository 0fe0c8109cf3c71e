"""The `equipoise` command: a list of verbs, each loaded only when it is called."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from .. import __version__
from ..errors import EquipoiseError
from ..extras import needs


@dataclass(frozen=True)
class Verb:
    """Where a verb lives, what it needs installed, and its line in `equipoise --help`.

    The target is a function, or a Typer application with one command.
    """

    target: str
    extra: str
    help: str

    def load(self) -> tuple[Callable[..., Any], str | None]:
        """The verb's function, and what its help ends with."""
        name, _, attribute = self.target.partition(":")
        module = import_module(name)
        target = getattr(module, attribute)
        if not isinstance(target, typer.Typer):
            return target, getattr(module, "EPILOG", None)
        (command,) = target.registered_commands
        assert command.callback is not None
        return command.callback, command.epilog


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "export": Verb("equipoise_export.command:app", "export", "Turn a PyTorch network into a served model pair."),
        "calibrate": Verb(
            "equipoise_export.calibrate.command:app", "export", "Choose thresholds with a guarantee on labelled cases."
        ),
        "train": Verb("equipoise_export.methods.command:app", "reference", "Train uncertainty methods to compare."),
        "compare": Verb(
            "equipoise_export.compare.command:app", "export", "One table over several models on one data set."
        ),
        "serve": Verb("equipoise_deploy.command:serve_command", "embedded", "Serve a model repository with Triton."),
        "tune": Verb(
            "equipoise_deploy.tune_command:tune_command", "embedded", "Find how this machine serves a model fastest."
        ),
        "certs": Verb(
            "equipoise_deploy.certs_command:certs_command", "operate", "Make certificates to try mutual TLS with."
        ),
        "publish": Verb(
            "equipoise_deploy.lifecycle.command:publish_verb", "operate", "Make a signed release of a model."
        ),
        "promote": Verb(
            "equipoise_deploy.lifecycle.command:promote_verb", "operate", "Put a release into service, if it is fit."
        ),
        "rollback": Verb("equipoise_deploy.lifecycle.command:rollback_verb", "operate", "Put the version before back."),
        "releases": Verb("equipoise_deploy.lifecycle.command:releases_verb", "operate", "List and verify releases."),
        "predict": Verb("equipoise_client.cli.predict:predict", "client", "Ask a server about image files."),
        "send": Verb("equipoise_client.cli.send:send", "dicom", "Store DICOM files in a PACS."),
        "fetch": Verb("equipoise_client.cli.fetch:fetch", "dicom", "Bring studies from a PACS over DICOMweb."),
        "rank": Verb("equipoise_client.rank.command:rank", "client", "Say which images an expert should label first."),
        "load": Verb("equipoise_client.load.command:load", "load", "Load-test a server, with honest latencies."),
        "replay": Verb("equipoise_client.cli.replay:replay", "client", "Decide a recorded case again and compare."),
        "gateway": Verb(
            "equipoise_client.gateway.command:gateway", "gateway", "Take DICOM studies in, send results back."
        ),
        "review": Verb("equipoise_client.review.command:review", "gateway", "Show unsure cases, take verdicts."),
        "bundle": Verb(
            "equipoise_deploy.bundle.command:bundle",
            "operate",
            "Everything for a machine without a network, in one file.",
        ),
        "demo": Verb(
            "equipoise_deploy.demo.command:demo", "demo", "Serve the reference models, decide on real images."
        ),
        "doctor": Verb(
            "equipoise_deploy.doctor.command:doctor", "operate", "Examine a machine before it goes live, and a server."
        ),
        "audit": Verb("equipoise_client.audit.command:audit", "client", "Verify, anchor and extend the audit log."),
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exit codes: 0 done, 1 it failed, 2 it was called wrongly."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text, nor terminals speak UTF-8
    words = list(sys.argv[1:] if arguments is None else arguments)
    called = next((word for word in words if not word.startswith("-")), "")
    verb = VERBS.get(called)
    try:
        with needs(verb.extra if verb else "client", f"equipoise {called}".strip()):
            _application(called)(args=words, prog_name="equipoise")
    except EquipoiseError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from error


def _application(called: str) -> typer.Typer:
    """All verbs by name, but only the called one with its code."""
    # A traceback with local variables could show a patient's data.
    application = typer.Typer(
        no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
    )

    @application.callback()
    def root(
        version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Show it.")] = False,
    ) -> None:
        """Serves networks trained with dropout, so that a clinic learns when they are not sure."""

    for name, verb in VERBS.items():
        if name == called:
            function, epilog = verb.load()
            application.command(name, epilog=epilog)(function)
        else:
            application.command(name, help=verb.help)(_unloaded)
    return application


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"equipoise {__version__}")
        raise typer.Exit


def _unloaded() -> None:
    """Stands for a verb that was not called; never runs."""


if __name__ == "__main__":
    main()
