-- +goose Up
ALTER TABLE jobs ADD COLUMN run_at      INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN pool        TEXT    NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN requires    TEXT    NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN conc_key    TEXT    NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN conc_limit  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN depends_on  TEXT    NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN rules       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN user_left   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN failed_on   TEXT    NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN batch       TEXT    NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN spec_bytes  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN redrive_of  TEXT    NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN redriven_by TEXT    NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN hooks       INTEGER NOT NULL DEFAULT 0; -- the spec has callbacks
ALTER TABLE jobs ADD COLUMN ok          INTEGER NOT NULL DEFAULT 0; -- ended with the exit code 0
ALTER TABLE jobs ADD COLUMN dead        INTEGER NOT NULL DEFAULT 0; -- as the state says, for an index that a lease does not touch

UPDATE jobs SET spec_bytes = length(spec), dead = state = 'dead',
    ok = result IS NOT NULL AND json_extract(CAST(result AS TEXT), '$.ending') = 'exited' AND json_extract(CAST(result AS TEXT), '$.exit_code') IS 0;

DROP INDEX jobs_open;
DROP INDEX jobs_ended;
CREATE INDEX jobs_open ON jobs (accepted_at) WHERE ended_at = 0;
CREATE INDEX jobs_ended ON jobs (ended_at, id) WHERE ended_at > 0;
CREATE INDEX jobs_dead ON jobs (tenant, id DESC) WHERE dead;
CREATE INDEX jobs_batch ON jobs (batch, id DESC) WHERE batch <> '';

-- attempts that were followed by another
CREATE TABLE attempts (
    job  TEXT    NOT NULL,
    n    INTEGER NOT NULL,
    data BLOB    NOT NULL,
    PRIMARY KEY (job, n)
) WITHOUT ROWID;

CREATE TABLE depends (
    job   TEXT NOT NULL,
    needs TEXT NOT NULL,
    PRIMARY KEY (needs, job)
) WITHOUT ROWID;
CREATE INDEX depends_job ON depends (job);

CREATE TABLE batches (
    id          TEXT PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    total       INTEGER NOT NULL,
    ended       INTEGER NOT NULL DEFAULT 0,
    ok          INTEGER NOT NULL DEFAULT 0,
    accepted_at INTEGER NOT NULL,
    ended_at    INTEGER NOT NULL DEFAULT 0,
    hash        TEXT    NOT NULL,
    key         TEXT    NOT NULL, -- idempotency key, until a time; empty for none
    until       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX batches_list ON batches (tenant, id DESC);
CREATE UNIQUE INDEX batches_key ON batches (tenant, key) WHERE key <> '';
CREATE INDEX batches_ended ON batches (ended_at, id) WHERE ended_at > 0;

CREATE TABLE schedules (
    tenant   TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    data     BLOB    NOT NULL, -- what the client has put
    paused   INTEGER NOT NULL,
    next_at  INTEGER NOT NULL,
    last_at  INTEGER NOT NULL DEFAULT 0,
    last_job TEXT    NOT NULL DEFAULT '',
    missed   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE INDEX schedules_due ON schedules (next_at) WHERE NOT paused;

ALTER TABLE workers ADD COLUMN seen     INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN info     BLOB    NOT NULL DEFAULT '';
ALTER TABLE workers ADD COLUMN cordoned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;

-- the last of what is counted up for ever
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    n    INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counters (name, n) SELECT 'session', coalesce(max(session), 0) FROM workers;

ALTER TABLE outbox ADD COLUMN batch INTEGER NOT NULL DEFAULT 0; -- the event is a batch's end

-- who leads: one row
CREATE TABLE leader (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    holder  TEXT    NOT NULL,
    term    INTEGER NOT NULL,
    renewed INTEGER NOT NULL,
    ttl     INTEGER NOT NULL
);
INSERT INTO leader (one, holder, term, renewed, ttl) VALUES (1, '', 0, 0, 0);

CREATE TABLE endpoints (
    id      TEXT PRIMARY KEY,
    tenant  TEXT    NOT NULL,
    enabled INTEGER NOT NULL,
    data    BLOB    NOT NULL
) WITHOUT ROWID;
CREATE INDEX endpoints_tenant ON endpoints (tenant) WHERE enabled;

-- what webhooks are to tell of, written with what happened
CREATE TABLE hooks (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    type   TEXT NOT NULL,
    job    TEXT NOT NULL, -- or the batch
    body   BLOB NOT NULL
);

