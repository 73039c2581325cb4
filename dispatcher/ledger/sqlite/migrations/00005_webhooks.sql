-- +goose Up
-- what is sent to webhook endpoints and callbacks, and what was
CREATE TABLE deliveries (
    id         TEXT PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    target     TEXT    NOT NULL, -- what deliveries wait for together: an endpoint, or a server of a tenant's callbacks
    endpoint   TEXT    NOT NULL, -- empty for a callback
    url        TEXT    NOT NULL,
    event      TEXT    NOT NULL,
    job        TEXT    NOT NULL,
    batch      TEXT    NOT NULL,
    format     TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    state      TEXT    NOT NULL,
    step       INTEGER NOT NULL, -- how many tries of the schedule have been
    attempts   INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    next_at    INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL DEFAULT 0, -- 0: pending
    error      TEXT    NOT NULL DEFAULT ''
);
CREATE INDEX deliveries_pending ON deliveries (target, next_at, id) WHERE ended_at = 0;
CREATE INDEX deliveries_list ON deliveries (tenant, id DESC);
CREATE INDEX deliveries_ended ON deliveries (ended_at, id) WHERE ended_at > 0;

CREATE TABLE delivery_tries (
    delivery TEXT    NOT NULL,
    n        INTEGER NOT NULL,
    data     BLOB    NOT NULL,
    PRIMARY KEY (delivery, n)
) WITHOUT ROWID;

-- what callbacks are signed with
CREATE TABLE callback_secrets (
    tenant TEXT PRIMARY KEY,
    data   BLOB NOT NULL
) WITHOUT ROWID;

-- +goose Down
DROP TABLE callback_secrets;
DROP TABLE delivery_tries;
DROP TABLE deliveries;
