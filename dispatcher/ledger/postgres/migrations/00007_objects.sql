-- +goose Up
-- the jobs that name objects, which are kept for them: "object": is in their spec or their result
CREATE INDEX jobs_objects ON jobs (id) WHERE position('\x226f626a656374223a'::bytea IN spec) > 0 OR position('\x226f626a656374223a'::bytea IN result) > 0;
CREATE VIEW object_jobs AS SELECT id, tenant, state, spec, result FROM jobs
    WHERE position('\x226f626a656374223a'::bytea IN spec) > 0 OR position('\x226f626a656374223a'::bytea IN result) > 0;

-- +goose Down
DROP VIEW object_jobs;
DROP INDEX jobs_objects;
