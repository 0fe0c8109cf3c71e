"""The audit log: an append-only, hash-chained JSONL log of decisions, verdicts, deletions and releases.

entry     one line, and its hash                    follow    lines as they come, for a running service
segments  the files that hold the lines             monitor   are accepted cases as right as promised?
chain     append, verify, head, entries, redact     policy    one policy under watch
command   `equipoise audit`                         stream    one monitor's evidence, in the order of decisions
"""

from .anchor import Anchor, parse_anchor
from .chain import Fault, append, entries, head, redact, verify
from .entry import AuditError, Entry, Kind, Verdict
from .segments import end, lines_since

__all__ = [
    "Anchor", "AuditError", "Entry", "Fault", "Kind", "Verdict", "append", "end", "entries", "head", "lines_since",
    "parse_anchor", "redact", "verify",
]  # fmt: skip
