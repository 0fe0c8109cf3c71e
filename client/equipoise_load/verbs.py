"""The verb `equipoise load`, as it is registered."""

from collections.abc import Mapping

from equipoise_client.cli.verbs import Verb

VERBS: Mapping[str, Verb] = {
    "load": Verb("equipoise_load.command:load", "load", "Load-test a server, with honest latencies.")
}
