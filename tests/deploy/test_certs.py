"""Certificates to try mutual TLS with: whole, private, and never in place of others."""

from __future__ import annotations

import json
import ssl
import stat
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from equipoise_client.cli.main import main
from equipoise_deploy.certs import CertificateError, make_certificates

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=timezone.utc)


def _certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_all_are_by_the_same_authority_and_sign_no_others(tmp_path):
    """The hosts stand in the server's certificate; each name is the common name, which the audit log shows."""
    made = {(each.role, each.name): each for each in make_certificates(tmp_path, ["proxy.example", "10.0.0.7"], ["a"])}
    assert list(made) == [
        ("authority", "Equipoise test authority - not for production"),
        ("server", "proxy.example"),
        ("client", "a"),
    ]
    authority, server, client = (_certificate(each.certificate) for each in made.values())
    for leaf, name in ((server, "proxy.example"), (client, "a")):
        leaf.verify_directly_issued_by(authority)
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert [each.value for each in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["proxy.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


@pytest.mark.parametrize(("pair", "accepted"), [("server", True), ("clients/localhost", False)])
def test_a_clients_certificate_cannot_be_a_servers(tmp_path, pair, accepted):
    """Not even that of a client who is named as the host is: TLS looks for hosts among the alternative names."""
    make_certificates(tmp_path, ["localhost"], ["localhost"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / f"{pair}.pem", tmp_path / f"{pair}.key")
    client = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(inbound, outbound, server_hostname="localhost")
    theirs = server.wrap_bio(outbound, inbound, server_side=True)
    for end in (ours, theirs):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    if accepted:
        ours.do_handshake()
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match=r"Hostname mismatch|hostname"):
            ours.do_handshake()


def test_keys_are_their_owners_alone_and_fit(tmp_path):
    """Every file that holds a key is 0600; each pair loads as a pair, the bundle as one file."""
    made = make_certificates(tmp_path, ["localhost"], ["a"])
    private = [*tmp_path.rglob("*.key"), tmp_path / "server.bundle.pem"]
    assert len(private) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for each in made:
        context.load_cert_chain(each.certificate, each.key)
    context.load_cert_chain(tmp_path / "server.bundle.pem")


@pytest.mark.parametrize(("options", "lasts"), [({}, 90), ({"days": 7}, 7)])
def test_they_end(tmp_path, options, lasts):
    """A quarter of a year unless said otherwise; a clock that is a little slow takes them."""
    made = {each.role: each for each in make_certificates(tmp_path, ["localhost"], ["a"], now=NOW, **options)}
    assert made["server"].expires == made["client"].expires == NOW + timedelta(days=lasts)
    assert _certificate(made["client"].certificate).not_valid_before_utc == NOW - timedelta(minutes=5)


def test_a_further_client_is_of_the_same_authority(tmp_path):
    """The authority that lies there is used again, and stays as it is."""
    make_certificates(tmp_path, ["localhost"], ["a"])
    before = (tmp_path / "ca.pem").read_bytes()
    (made,) = make_certificates(tmp_path, [], ["b"])
    assert (tmp_path / "ca.pem").read_bytes() == before
    _certificate(made.certificate).verify_directly_issued_by(_certificate(tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("hosts", "clients", "says"),
    [
        (["localhost"], [], "server.pem already exists"),
        ([], ["a"], "a.pem already exists"),
        ([], ["../a"], "not a valid client name"),
        ([], ["b", "b"], "name each client once"),
        (["not a host"], [], "already exists"),
        ([], [], "nothing to make"),
    ],
)
def test_nothing_is_overwritten_and_names_are_names(tmp_path, hosts, clients, says):
    """A refusal leaves every file as it was, and makes none."""
    make_certificates(tmp_path, ["localhost"], ["a"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(CertificateError, match=says):
        make_certificates(tmp_path, hosts, clients)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("damage", ["ca.key", "ca.pem"])
def test_half_an_authority_is_not_made_whole(tmp_path, damage):
    """Another key under the old name would cut off every client without a word."""
    make_certificates(tmp_path, ["localhost"], [])
    (tmp_path / damage).unlink()
    with pytest.raises(CertificateError, match="no complete authority"):
        make_certificates(tmp_path, [], ["a"])


def test_another_authoritys_key_is_refused(tmp_path):
    """It would issue certificates that nobody trusts."""
    make_certificates(tmp_path / "one", ["localhost"], [])
    make_certificates(tmp_path / "two", ["localhost"], [])
    (tmp_path / "two/ca.key").replace(tmp_path / "one/ca.key")
    with pytest.raises(CertificateError, match="no complete authority"):
        make_certificates(tmp_path / "one", [], ["a"])


@pytest.mark.parametrize("host", ["a host", "a/b", "10.0.0.0/8", "a@b.example", "", "x" * 70])
def test_a_host_that_is_none_is_refused(tmp_path, host):
    with pytest.raises(CertificateError, match=r"not a host name or address|cannot stand in a certificate"):
        make_certificates(tmp_path, [host], [])
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_is_for(tmp_path, capsys):
    """`--json` for machines, a word of warning for both, and 1 where nothing was made."""
    arguments = ["certs", "--into", str(tmp_path / "c"), "--host", "localhost", "--client", "a", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["for_tests_only"] is True
    assert [each["role"] for each in printed["made"]] == ["authority", "server", "client"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["certs", "--help"])
    assert "TESTS AND TRIALS" in capsys.readouterr().out
