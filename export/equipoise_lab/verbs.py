"""The lab's verbs of the `equipoise` command. Importing this loads no torch."""

from collections.abc import Mapping

from equipoise_client.cli.verbs import Verb

VERBS: Mapping[str, Verb] = {
    "train": Verb("equipoise_lab.train.command:app", "lab", "Train your network on your labelled cases."),
    "compare": Verb("equipoise_lab.compare.command:app", "export", "One table over several models on one data set."),
    "rank": Verb("equipoise_lab.rank.command:rank", "client", "Say which images an expert should label first."),
}
