-- +goose Up
-- a tenant's jobs that workers have are listed without those that wait, of which there may be a million
CREATE INDEX jobs_held ON jobs (tenant, id DESC) WHERE state IN ('leased', 'running');

-- +goose Down
DROP INDEX jobs_held;
