"""The audit log: an append-only, hash-chained JSONL file of decisions, verdicts and deletions."""

from .chain import Anchor, AuditError, Entry, Finding, Kind, append, head, redact, verify

__all__ = ["Anchor", "AuditError", "Entry", "Finding", "Kind", "append", "head", "redact", "verify"]
