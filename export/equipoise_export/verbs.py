"""The exporter's verbs of the `equipoise` command. Importing this loads no torch."""

from collections.abc import Mapping

from equipoise_client.cli.verbs import Verb

VERBS: Mapping[str, Verb] = {
    "export": Verb("equipoise_export.command:app", "export", "Turn a PyTorch network into a served model pair."),
    "migrate": Verb("equipoise_export.publish.command:app", "export", "Bring a model pair into this version's format."),
    "calibrate": Verb(
        "equipoise_export.calibration.command:app", "export", "Choose thresholds with a guarantee on labelled cases."
    ),
    "adapt": Verb(
        "equipoise_export.adaptation.command:app", "export", "Move a calibrated model to a new site, closed at first."
    ),
}
