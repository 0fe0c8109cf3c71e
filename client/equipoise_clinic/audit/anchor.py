"""How long a log was and how it ended: what is kept outside of it, so that a cut-off or rewritten log is noticed."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from .entry import FORMAT, AuditError


@dataclass(frozen=True)
class Anchor:
    """State of a log.

    Attributes:
        entries: number of lines.
        hash: of the last line (`GENESIS` for an empty log).
        signature: HMAC-SHA-256 of both under a key, or "".
    """

    entries: int
    hash: str
    signature: str = ""

    def text(self) -> str:
        """One line to print or send: `equipoise-audit/1 12 3f…  [signature]`."""
        return " ".join(part for part in (FORMAT, str(self.entries), self.hash, self.signature) if part)

    def signed(self, key: bytes) -> Anchor:
        message = f"{FORMAT} {self.entries} {self.hash}".encode()
        return Anchor(self.entries, self.hash, hmac.new(key, message, "sha256").hexdigest())


def parse_anchor(text: str, key: bytes | None = None) -> Anchor:
    """Reads `Anchor.text`. With a key the signature must be right. Raises AuditError."""
    parts = text.split()
    if len(parts) not in (3, 4) or parts[0] != FORMAT or not parts[1].isdigit():
        raise AuditError(f"{text[:80]!r} is no anchor; expected '{FORMAT} <entries> <hash> [<signature>]'")
    anchor = Anchor(int(parts[1]), parts[2], parts[3] if len(parts) == 4 else "")
    if key is not None and not hmac.compare_digest(anchor.signature, anchor.signed(key).signature):
        raise AuditError("the anchor's signature is not by this key: it was changed, or signed by another")
    return anchor
