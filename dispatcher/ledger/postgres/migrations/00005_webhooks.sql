-- +goose Up
-- what is sent to webhook endpoints and callbacks, and what was
CREATE TABLE deliveries (
    id         TEXT COLLATE "C" PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL,
    target     TEXT COLLATE "C" NOT NULL, -- what deliveries wait for together: an endpoint, or a server of a tenant's callbacks
    endpoint   TEXT COLLATE "C" NOT NULL, -- empty for a callback
    url        TEXT    NOT NULL,
    event      TEXT    NOT NULL,
    job        TEXT    NOT NULL,
    batch      TEXT    NOT NULL,
    format     TEXT    NOT NULL,
    body       BYTEA   NOT NULL,
    state      TEXT    NOT NULL,
    step       BIGINT  NOT NULL, -- how many tries of the schedule have been
    attempts   BIGINT  NOT NULL DEFAULT 0,
    created_at BIGINT  NOT NULL,
    next_at    BIGINT  NOT NULL,
    ended_at   BIGINT  NOT NULL DEFAULT 0, -- 0: pending
    error      TEXT    NOT NULL DEFAULT ''
);
CREATE INDEX deliveries_pending ON deliveries (target, next_at, id) WHERE ended_at = 0;
CREATE INDEX deliveries_list ON deliveries (tenant, id DESC);
CREATE INDEX deliveries_ended ON deliveries (ended_at, id) WHERE ended_at > 0;

CREATE TABLE delivery_tries (
    delivery TEXT COLLATE "C" NOT NULL,
    n        BIGINT NOT NULL,
    data     BYTEA  NOT NULL,
    PRIMARY KEY (delivery, n)
);

-- what callbacks are signed with
CREATE TABLE callback_secrets (
    tenant TEXT COLLATE "C" PRIMARY KEY,
    data   BYTEA NOT NULL
);
