BEGIN TRANSACTION;
CREATE TABLE aside (
    key TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    at REAL NOT NULL
) STRICT;
INSERT INTO "aside" VALUES('2d711642b726b044','it cannot be read as DICOM (InvalidDicomError)',1795994432.5);
CREATE TABLE cases (
    key TEXT PRIMARY KEY,
    study TEXT NOT NULL REFERENCES studies (key),
    series TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('analysed', 'delivering', 'delivered', 'review', 'withheld', 'rejected', 'dead')),
    reason TEXT NOT NULL DEFAULT '',
    route TEXT NOT NULL,
    why TEXT NOT NULL,
    score REAL,
    volume TEXT NOT NULL,
    marked INTEGER NOT NULL,
    late INTEGER NOT NULL DEFAULT 0,
    verdict TEXT,
    created REAL NOT NULL
) STRICT;
INSERT INTO "cases" VALUES('cccccccccccccccc','1be842dc5ec02bf9','1.2.3','tiny','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','c94fc544e8c3a93dffa0d98dd2cba81ac57fa96a1e735eaa654cbba4ad9c1df6','review','','review','too uncertain',0.25,'{"total": {"mean": 1.5, "sd": 0.1, "low": 1.2, "high": 1.8}}',0,0,NULL,1795994432.5);
INSERT INTO "cases" VALUES('dddddddddddddddd','0b50e4216a791f4b','1.2.3','tiny','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','2124f8065bf12d9924cea2862caf85ecb33ce2f0cb57a2204804762b2355825e','delivered','','accept','too uncertain',0.25,'{"total": {"mean": 1.5, "sd": 0.1, "low": 1.2, "high": 1.8}}',0,0,NULL,1795994432.5);
CREATE TABLE cursors (
    source TEXT PRIMARY KEY,
    position TEXT NOT NULL
) STRICT;
INSERT INTO "cursors" VALUES('orthanc http://127.0.0.1:8042','17');
CREATE TABLE instances (
    study TEXT NOT NULL REFERENCES studies (key),
    uid TEXT NOT NULL,
    series TEXT NOT NULL DEFAULT '',
    deleted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study, uid)
) STRICT, WITHOUT ROWID;
INSERT INTO "instances" VALUES('0b50e4216a791f4b','1.2.826.0.1.3680043.8.498.35268260128445437084962122951542266707','1.2.826.0.1.3680043.8.498.95590688147419145253953679306881116142',0);
INSERT INTO "instances" VALUES('1be842dc5ec02bf9','1.2.826.0.1.3680043.8.498.12044531114732093546195672028133389570','1.2.826.0.1.3680043.8.498.93087054793931063911655742088707397949',0);
INSERT INTO "instances" VALUES('1be842dc5ec02bf9','1.2.826.0.1.3680043.8.498.46167443158510429469192712502622491119','1.2.826.0.1.3680043.8.498.93087054793931063911655742088707397949',0);
CREATE TABLE journal (
    entry TEXT PRIMARY KEY,
    owner TEXT NOT NULL REFERENCES cases (key),
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    start INTEGER NOT NULL,
    sequence INTEGER,
    written INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO "journal" VALUES('460c682fc180f11e','cccccccccccccccc','decision','{"format": "test/1", "model": "tiny", "route": "review", "case": "cccccccccccccccc", "entry": "460c682fc180f11e"}',0,1,1);
INSERT INTO "journal" VALUES('f7de69029c9bc8a0','dddddddddddddddd','decision','{"format": "test/1", "model": "tiny", "route": "review", "case": "dddddddddddddddd", "entry": "f7de69029c9bc8a0"}',411,2,1);
CREATE TABLE parcels (
    owner TEXT NOT NULL REFERENCES cases (key),
    number INTEGER NOT NULL,
    uid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    away REAL,
    PRIMARY KEY (owner, number)
) STRICT, WITHOUT ROWID;
INSERT INTO "parcels" VALUES('cccccccccccccccc',1,'1.2.826.0.1.3680043.8.498.12034767683040931351490486725083835632','waiting',0,0.0,NULL);
INSERT INTO "parcels" VALUES('cccccccccccccccc',2,'1.2.826.0.1.3680043.8.498.44860267740350443383586452211607580205','waiting',0,0.0,NULL);
INSERT INTO "parcels" VALUES('cccccccccccccccc',3,'1.2.826.0.1.3680043.8.498.13257859141370253686623310688647094565','waiting',0,0.0,NULL);
INSERT INTO "parcels" VALUES('dddddddddddddddd',1,'1.2.826.0.1.3680043.8.498.72680955425415134474626668780231851392','sent',0,0.0,NULL);
CREATE TABLE studies (
    key TEXT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('receiving', 'analysed', 'rejected', 'dead')),
    reason TEXT NOT NULL DEFAULT '',
    revision INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    heard REAL NOT NULL,
    due REAL NOT NULL,
    kept INTEGER NOT NULL DEFAULT 1
) STRICT;
INSERT INTO "studies" VALUES('1be842dc5ec02bf9','1.2.826.0.1.3680043.8.498.22753009951360246130343261599069397313','analysed','',2,0,1795994432.5,1795994432.5,1);
INSERT INTO "studies" VALUES('0b50e4216a791f4b','1.2.826.0.1.3680043.8.498.75222180783889060509708718881537372364','analysed','',1,0,1795994432.5,1795994432.5,1);
CREATE INDEX studies_due ON studies (state, due);
CREATE UNIQUE INDEX one_result ON cases (study, series, model, version) WHERE state <> 'rejected';
CREATE INDEX cases_state ON cases (state);
CREATE INDEX journal_open ON journal (written) WHERE written = 0;
CREATE INDEX journal_case ON journal (owner);
COMMIT;

