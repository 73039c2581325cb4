-- +goose Up
-- a tenant's jobs that have not ended are listed without those that have; all are read at a start, in any order
DROP INDEX jobs_open;
CREATE INDEX jobs_open ON jobs (tenant, id DESC) WHERE ended_at = 0;

-- +goose Down
DROP INDEX jobs_open;
CREATE INDEX jobs_open ON jobs (accepted_at) WHERE ended_at = 0;
