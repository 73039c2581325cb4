-- +goose Up
ALTER TABLE jobs ADD COLUMN network TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE jobs DROP COLUMN network;
