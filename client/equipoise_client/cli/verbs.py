"""What a verb of the `equipoise` command is, where the packages register theirs, and the verbs of the client itself.

A package registers a mapping of verbs as an entry point of the group `equipoise.verbs`. Its module must import nothing
heavy: all of them are loaded for `equipoise --help`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import typer

GROUP = "equipoise.verbs"


@dataclass(frozen=True)
class Verb:
    """Where a verb lives, what it needs installed, and its line in `equipoise --help`.

    Attributes:
        target: `module:name` of a function, or of a Typer application with one command.
        extra: the extra of the distribution that installs what it needs.
        package: of those that registered verbs; `equipoise --help` has a panel for each.
    """

    target: str
    extra: str
    help: str
    package: str = ""

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


VERBS: Mapping[str, Verb] = {
    "predict": Verb("equipoise_client.cli.predict:predict", "client", "Ask a server about image files."),
    "replay": Verb("equipoise_client.cli.replay:replay", "client", "Decide a recorded case again and compare."),
}


def registered() -> dict[str, Verb]:
    """The verbs of all installed packages, by name."""
    found: dict[str, Verb] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        found |= {name: replace(verb, package=entry.name) for name, verb in entry.load().items()}
    return found
