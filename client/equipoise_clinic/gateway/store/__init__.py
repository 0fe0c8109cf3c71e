"""What the gateway knows, in SQLite: durable before anything is answered, and the same after a crash.

A **study** is an input, a **case** one result, an **outbox item** one of its objects on the way out, a **journal line**
what the audit log is to get. No column holds what identifies a person; DICOM UIDs stand here, and names nowhere.

    study:  receiving ──quiet──▶ analysed          case:  analysed ─logged─▶ delivering ──▶ delivered
               ▲  │  └────▶ rejected(reason)                          └────▶ review ─┬─ accept ─▶ delivering
               └──┴ late    dead(reason)                                             └─ reject, correct ─▶ withheld
                                                   delivering ──▶ dead(reason);  any unsent ─ late ─▶ rejected(reason)
                                                   delivering, accepted ─ accept was closed meanwhile ─▶ review

Logged: the audit log holds the decision. Dead: its analysis or delivery failed too often; `Store.revive` tries again.

**Late images.** Images that come after their study was analysed make it `receiving` again, and so do damaged ones, and
others under a UID that is known. Nothing that is of fewer images is sent until they are analysed too. If the new
answer is the same, nothing else happens. If not, and nothing of the old one was sent, the new one takes its place. If
something was sent, the new one is a new version that says so (`replaces`), and the old one goes to the worklist as
`late`: a person decides what to do about it, and whether the rest of it is sent. A result that the study does not give
again, as its series is another by now or fits another model, is withdrawn or late likewise.
Where the earlier images were deleted already (`keep_input_hours`), a series that they belong to is rejected until they
are sent again: what is left of it would pass for the whole.
"""

from __future__ import annotations

from pathlib import Path

from . import cases, studies
from .cases import FINISHED, Cases, Kept, NewCase, NewObject, StoredCase, fingerprint_of
from .database import Database
from .journal import Journal, JournalLine
from .outbox import ORU, Outbox, OutboxItem
from .studies import Studies, Study

__all__ = [
    "FINISHED", "ORU", "JournalLine", "Kept", "NewCase", "NewObject", "OutboxItem", "Store", "StoredCase", "Study",
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

    def purge(self, before: float) -> int:
        """Forgets studies that are done with and of which nothing came since `before`; how many there were.

        Done with: its images are deleted, each of its results is sent, withheld or replaced, and no person is asked for
        anything. The audit log keeps the decisions. Should such a study come again, it is a new one.
        """
        done = (  # all of it is constant
            "SELECT s.key FROM studies s"  # noqa: S608
            " WHERE s.state <> 'receiving' AND s.kept = 0 AND s.heard < ? AND NOT EXISTS"
            f" (SELECT 1 FROM cases c WHERE c.study = s.key AND (c.state NOT IN {FINISHED} OR {cases.OPEN}))"
            " AND NOT EXISTS (SELECT 1 FROM journal j JOIN cases c ON c.key = j.owner"
            " WHERE c.study = s.key AND j.written = 0)"
        )
        if not self.rows(f"{done} LIMIT 1", before):
            return 0
        with self.transaction() as db:
            keys = [(row["key"],) for row in db.execute(done, (before,)).fetchall()]
            for table in ("outbox", "journal"):
                db.executemany(f"DELETE FROM {table} WHERE owner IN (SELECT key FROM cases WHERE study = ?)", keys)  # noqa: S608
            db.executemany("DELETE FROM absent WHERE study = (SELECT uid FROM studies WHERE key = ?)", keys)
            for table in ("cases", "instances"):
                db.executemany(f"DELETE FROM {table} WHERE study = ?", keys)  # noqa: S608
            db.executemany("DELETE FROM studies WHERE key = ?", keys)
        return len(keys)

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
