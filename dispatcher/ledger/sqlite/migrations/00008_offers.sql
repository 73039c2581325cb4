-- +goose Up
-- what a worker offers, by its last heartbeat; empty where nobody has written it
ALTER TABLE workers ADD COLUMN offer BLOB NOT NULL DEFAULT X'';

-- +goose Down
ALTER TABLE workers DROP COLUMN offer;
