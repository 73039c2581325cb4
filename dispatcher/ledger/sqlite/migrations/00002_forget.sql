-- +goose Up
CREATE INDEX jobs_ended ON jobs (ended_at, id) WHERE state IN ('ended', 'dead');
CREATE INDEX idempotency_job ON idempotency (job);

-- +goose Down
DROP INDEX idempotency_job;
DROP INDEX jobs_ended;
