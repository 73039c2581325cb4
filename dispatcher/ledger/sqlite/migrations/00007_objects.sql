-- +goose Up
-- the jobs that name objects, which are kept for them: "object": is in their spec or their result
CREATE INDEX jobs_objects ON jobs (id) WHERE instr(spec, X'226F626A656374223A') > 0 OR instr(result, X'226F626A656374223A') > 0;
CREATE VIEW object_jobs AS SELECT id, tenant, state, spec, result FROM jobs WHERE instr(spec, X'226F626A656374223A') > 0 OR instr(result, X'226F626A656374223A') > 0;

-- +goose Down
DROP VIEW object_jobs;
DROP INDEX jobs_objects;
