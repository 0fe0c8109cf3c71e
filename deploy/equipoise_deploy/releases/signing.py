"""Signatures of files and folders by an elliptic-curve key, in the format of the `model-signing` library (OMS).

Only the parts of the library without network and services are used. Anybody can check a signature with its own
command, `model_signing verify key FOLDER --signature FOLDER/release.sig --public_key release.pub`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ReleaseError, TamperedError

NEW_KEY = (
    "openssl ecparam -name prime256v1 -genkey -noout -out release.key; "
    "openssl ec -in release.key -pubout -out release.pub"
)
"""How an operator makes a pair of keys."""


def sign(what: Path, signature: Path, key: Path) -> None:
    """Signs a file, or all of a folder but `signature` itself.

    Args:
        key: private key, PEM, NIST P-256, P-384 or P-521, without a password.

    Raises ReleaseError where the key cannot be used.
    """
    from model_signing import signing

    what, signature = what.resolve(), signature.resolve()  # the library records relative paths unchanged
    with _quiet(), _key_problems(key, "private"):
        signer = signing.Config().set_hashing_config(_hashing(signature)).use_elliptic_key_signer(private_key=key)
    with _quiet():
        signer.sign(what, signature)


def verify_signature(what: Path, signature: Path, trust: Path) -> None:
    """Raises TamperedError where `signature` is not by the public key `trust` over exactly this file or folder."""
    from model_signing import verifying
    from model_signing._signing.sign_sigstore_pb import Signature

    if not signature.is_file():
        raise TamperedError(
            f"{signature.name} is missing in {signature.parent}: it is not signed, but --trust {trust} requires a "
            "signature; publish it with --sign, or take a signed copy"
        )
    with _quiet(), _key_problems(trust, "public"):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=trust)
    what, signature = what.resolve(), signature.resolve()
    try:
        with _quiet():
            # Fields that the library does not look at (key id, spelling of base64) are part of the file too.
            if Signature.read(signature).bundle.to_json().encode() != signature.read_bytes():
                raise ValueError("the signature file is not as the library writes it")
            verifier.verify(what, signature)
    except Exception as error:
        raise TamperedError(
            f"{signature} does not hold for {what} and the key {trust}: {type(error).__name__}: {str(error)[:300]}. "
            "Do not serve it; publish it again from its source, or restore it from its bundle"
        ) from error


def _hashing(signature: Path) -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """The library prints warnings to stdout, which is for our JSON."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _key_problems(key: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ReleaseError(
            f"{key} is not a {kind} elliptic-curve key in PEM: {error}. A pair is made by: {NEW_KEY}"
        ) from error
