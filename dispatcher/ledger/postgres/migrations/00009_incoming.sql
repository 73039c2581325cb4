-- +goose Up
-- not all of its jobs are written yet: those that are there are there for nobody
ALTER TABLE batches ADD COLUMN incoming BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX batches_incoming ON batches (id) WHERE incoming;

-- +goose Down
DROP INDEX batches_incoming;
ALTER TABLE batches DROP COLUMN incoming;
