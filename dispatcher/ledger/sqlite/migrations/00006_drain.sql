-- +goose Up
-- when what a draining worker still has is given to others; 0 for never
ALTER TABLE workers ADD COLUMN drain_by INTEGER NOT NULL DEFAULT 0;
-- which nobody wrote
ALTER TABLE workers DROP COLUMN info;

-- +goose Down
ALTER TABLE workers ADD COLUMN info BLOB NOT NULL DEFAULT '';
ALTER TABLE workers DROP COLUMN drain_by;
