"""The DICOM Conformance Statement says what is negotiated and written."""

from __future__ import annotations

import re
from pathlib import Path

import equipoise_clinic
from equipoise_clinic.dicom.report import objects_of
from equipoise_clinic.dicom.result_source import Predecessor
from equipoise_clinic.gateway import conformance
from equipoise_clinic.gateway.receivers import Receiver
from equipoise_clinic.gateway.settings import EXAMPLE, Receive, load_settings
from msgspec.structs import replace
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from ...support.phantom import phantom
from ...support.result_sources import find, head  # noqa: F401 (fixtures)

PAGE = Path(equipoise_clinic.__file__).with_name("CONFORMANCE.md")


def test_the_page_is_what_the_code_says() -> None:
    """`equipoise gateway client/equipoise_clinic/gateway/example.toml --conformance` writes it."""
    assert PAGE.read_text(encoding="utf-8") == conformance.statement(load_settings(EXAMPLE))


def test_objects_have_the_attributes_that_are_stated(head) -> None:  # noqa: F811
    """All of them, and no other."""
    source = find(phantom().datasets, head)
    object.__setattr__(source, "predecessor", Predecessor("1.2.3", "1.2.4"))
    written = objects_of(source)
    assert {each.SOPClassUID for each in written} == set(conformance.CREATED)
    for each in written:
        assert {element.keyword for element in each} == set(conformance.ATTRIBUTES[each.SOPClassUID])
        assert not [element for element in each.iterall() if element.tag.is_private]
        assert each.file_meta.TransferSyntaxUID in conformance.PLAIN


def test_the_receiver_accepts_the_syntaxes_that_are_stated_and_no_other(desk) -> None:
    table = conformance.statement(load_settings(EXAMPLE)).partition("SOP classes that are kept")[0]
    stated = {UID(uid) for uid in re.findall(r"`(1\.2\.840\.10008\.1\.2[.0-9]*)`", table)}
    receiver = Receiver(Receive(port=0), desk.intake, desk.log)
    port = receiver.start()
    accepted = set()
    try:
        for syntax in AllTransferSyntaxes:
            entity = AE()
            entity.add_requested_context(CTImageStorage, syntax)
            association = entity.associate("127.0.0.1", port, ae_title="EQUIPOISE")
            accepted |= {syntax} if association.is_established else set()
            association.abort()
    finally:
        receiver.stop()
    assert accepted == stated and len(stated) > 3


def test_a_site_without_a_receiver_says_so() -> None:
    text = conformance.statement(replace(load_settings(EXAMPLE), receive=None))
    assert "Not configured.\n" in text.partition("### 4.2")[2].partition("### 4.3")[0]
