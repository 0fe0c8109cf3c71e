"""Stores, keys and variants of tiny models for the tests of the lifecycle."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from equipoise_core.canonical import digest_of
from equipoise_core.loading import load_model
from equipoise_core.policy import Guarantee, Policy
from equipoise_core.stages import Stage


@dataclass(frozen=True)
class Keys:
    """A pair of PEM files."""

    private: Path
    public: Path


@dataclass(frozen=True)
class Proven:
    """A proof as `prove` writes it, of one property."""

    passed: bool = True

    def document(self) -> Any:
        return {"checks": [{"name": "same as the network", "value": 0.0, "limit": "≤ 0.0001", "passed": self.passed}]}


def make_keys(folder: Path, name: str = "release") -> Keys:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = Keys(folder / f"{name}.key", folder / f"{name}.pub")
    keys.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )
    keys.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return keys


def proven(tiny: Any, passed: bool = True) -> Any:
    return replace(tiny, proof=Proven(passed))


def give_policy(pair: Path, threshold: float = 0.5) -> Policy:
    """A policy that accepts what scores at most `threshold`, written beside the contract."""
    contract = load_model(pair / "1").contract
    policy = Policy(
        model_digest=contract.model_digest,
        calibration_digest=digest_of("cases"),
        stages=(Stage(contract.samples, "lack_of_confidence", threshold),),
        guarantee=Guarantee(0.1, 0.1, "wrong label", 100, 50, 1, "chosen for a test"),
    )
    (pair / "1" / "policy.json").write_text(policy.dumps(), encoding="utf-8")
    return policy


def edit(path: Path, **changes: Any) -> None:
    """Changes entries of a JSON file that may be read-only."""
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def overwrite(path: Path, content: bytes) -> None:
    path.parent.chmod(0o755)
    if path.exists():
        path.chmod(0o644)
    path.write_bytes(content)
