"""What the gateway knows, in SQLite: durable before anything is answered, and the same after a crash.

A **study** is an input, a **case** one result, an **outbox item** one of its objects on the way out, a **journal line**
what the audit log is to get. No column holds what identifies a person; DICOM UIDs stand here, and names nowhere.

    study:  receiving ──quiet──▶ analysed          case:  analysed ─logged─▶ delivering ──▶ delivered
               ▲  │  └────▶ rejected(reason)                          └────▶ review ─┬─ accept ─▶ delivering
               └──┴ late    dead(reason)                                             └─ reject, correct ─▶ withheld
                                                   delivering ──▶ dead(reason);  any unsent ─ late ─▶ rejected(reason)

Logged: the audit log holds the decision. Dead: its analysis or delivery failed too often; `Store.revive` tries again.

**Late images.** Images that come after their study was analysed make it `receiving` again, and so do damaged ones, and
others under a UID that is known. If the new answer is the same, nothing happens. If not, and nothing of the old one was
sent, the new one takes its place. If something was sent, the new one is a new version that says so (`replaces`), and
the old one goes to the worklist as `late`: a person decides what to do about it.
Where the earlier images were deleted already (`keep_input_hours`), a series that they belong to is rejected until they
are sent again: what is left of it would pass for the whole.
"""

from __future__ import annotations

from pathlib import Path

from . import cases, studies
from .cases import FINISHED, Cases, Kept, NewCase, NewObject, StoredCase, fingerprint_of
from .database import Database
from .journal import Journal, JournalLine
from .outbox import Outbox, OutboxItem
from .studies import Studies, Study

__all__ = [
    "FINISHED", "JournalLine", "Kept", "NewCase", "NewObject", "OutboxItem", "Store", "StoredCase", "Study",
    "fingerprint_of",
]  # fmt: skip


class Store(Database):
    """The database, and what is in it by subject: `studies`, `cases`, `outbox`, `journal`.

    Args:
        path: of the database file. Raises EquipoiseError where a later version wrote it.
        patience: seconds; a waiting time further ahead means that the clock was set back, and counts as over.
    """

    def __init__(self, path: Path, patience: float = 3600.0) -> None:
        super().__init__(path, patience)
        self.studies = Studies(self)
        self.cases = Cases(self)
        self.outbox = Outbox(self)
        self.journal = Journal(self)

    def revive(self) -> int:
        """All dead letters are sent again, all dead studies analysed again; how many there were."""
        with self.transaction() as db:
            db.execute(
                "UPDATE outbox SET state = 'waiting', attempts = 0, due = 0, away = NULL"
                " WHERE state IN ('dead', 'unwanted') AND owner IN (SELECT key FROM cases WHERE state = 'dead')"
            )
            count = db.execute("UPDATE cases SET state = 'delivering', reason = '' WHERE state = 'dead'").rowcount
            count += db.execute(
                "UPDATE studies SET state = 'receiving', reason = '', attempts = 0, due = 0"
                " WHERE state = 'dead' AND kept = 1"
            ).rowcount
        return count

    def counts(self) -> dict[str, dict[str, int]]:
        """`studies`, `cases` → state → how many; every state is there."""
        counted = {"studies": dict.fromkeys(studies.STATES, 0), "cases": dict.fromkeys(cases.STATES, 0)}
        for table, states in counted.items():
            for row in self.rows(f"SELECT state, COUNT(*) AS n FROM {table} GROUP BY state"):  # noqa: S608
                states[row["state"]] = row["n"]
        return counted

    def cursor(self, source: str) -> str | None:
        """Where a source was read up to."""
        row = self.row("SELECT position FROM cursors WHERE source = ?", source)
        return row["position"] if row else None

    def remember(self, source: str, position: str) -> None:
        statement = "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET position = excluded.position"
        self.execute(statement, source, position)
