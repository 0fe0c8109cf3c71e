"""The verbs of the `equipoise` command that run and keep a service."""

from collections.abc import Mapping

from equipoise_client.cli.verbs import Verb

VERBS: Mapping[str, Verb] = {
    "serve": Verb(
        "equipoise_deploy.serving.command:serve_command", "embedded", "Serve a model repository with Triton."
    ),
    "tune": Verb(
        "equipoise_deploy.tune.command:tune_command", "embedded", "Find how this machine serves a model fastest."
    ),
    "doctor": Verb(
        "equipoise_deploy.doctor.command:doctor", "operate", "Examine a machine before it goes live, and a server."
    ),
    "publish": Verb("equipoise_deploy.releases.command:publish_verb", "operate", "Make a signed release of a model."),
    "promote": Verb(
        "equipoise_deploy.promotion.command:promote_verb", "operate", "Put a release into service, if it is fit."
    ),
    "rollback": Verb("equipoise_deploy.promotion.command:rollback_verb", "operate", "Put the version before back."),
    "releases": Verb("equipoise_deploy.releases.command:releases_verb", "operate", "List and verify releases."),
    "bundle": Verb(
        "equipoise_deploy.bundle.command:bundle", "operate", "Everything for a machine without a network, in one file."
    ),
    "dossier": Verb(
        "equipoise_deploy.dossier.command:dossier_verb",
        "operate",
        "Write what is known of a model, as papers for the file.",
    ),
    "certs": Verb("equipoise_deploy.certs:certs_command", "operate", "Make certificates to try mutual TLS with."),
    "demo": Verb("equipoise_deploy.demo.command:demo", "demo", "Serve the reference models, decide on real images."),
}
