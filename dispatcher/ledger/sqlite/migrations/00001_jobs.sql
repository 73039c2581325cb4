-- +goose Up
CREATE TABLE jobs (
    id          TEXT PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    attempt     INTEGER NOT NULL DEFAULT 0,
    epoch       INTEGER NOT NULL DEFAULT 0,
    worker      TEXT    NOT NULL DEFAULT '',
    session     INTEGER NOT NULL DEFAULT 0,
    image       TEXT    NOT NULL,
    priority    INTEGER NOT NULL,
    vcpus       INTEGER NOT NULL,
    memory_mib  INTEGER NOT NULL,
    infra_left  INTEGER NOT NULL,
    cancel      INTEGER NOT NULL DEFAULT 0,
    labels      TEXT    NOT NULL,
    hash        TEXT    NOT NULL,
    spec        BLOB    NOT NULL,
    result      BLOB,
    -- microseconds since 1970; 0 for never
    accepted_at INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    not_before  INTEGER NOT NULL DEFAULT 0,
    leased_at   INTEGER NOT NULL DEFAULT 0,
    ended_at    INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE INDEX jobs_open ON jobs (accepted_at) WHERE state NOT IN ('ended', 'dead');
CREATE INDEX jobs_list ON jobs (tenant, id DESC);

CREATE TABLE idempotency (
    tenant TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    job    TEXT    NOT NULL,
    until  INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;

CREATE TABLE workers (
    name    TEXT PRIMARY KEY,
    session INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE outbox (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    event BLOB    NOT NULL,
    dead  INTEGER NOT NULL
);

-- +goose Down
DROP TABLE outbox;
DROP TABLE workers;
DROP TABLE idempotency;
DROP TABLE jobs;
