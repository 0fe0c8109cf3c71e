"""The clinic's verbs of the `equipoise` command."""

from collections.abc import Mapping

from equipoise_client.cli.verbs import Verb

VERBS: Mapping[str, Verb] = {
    "gateway": Verb("equipoise_clinic.gateway.command:gateway", "clinic", "Receive DICOM studies, send results."),
    "review": Verb(
        "equipoise_clinic.review.command:review", "clinic", "Show cases that need an expert, record verdicts."
    ),
    "send": Verb("equipoise_clinic.dicom.send_command:send", "clinic", "Store DICOM files in a PACS."),
    "fetch": Verb("equipoise_clinic.dicom.fetch_command:fetch", "clinic", "Fetch studies from a PACS over DICOMweb."),
    "audit": Verb("equipoise_clinic.audit.command:audit", "client", "Verify, anchor and extend the audit log."),
}
