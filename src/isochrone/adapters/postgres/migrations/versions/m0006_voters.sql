-- former: the voters before the last change, of whom more than half must agree as well.
ALTER TABLE voters
    ADD COLUMN former     text[] NOT NULL DEFAULT '{}',
    ADD COLUMN epoch      bigint NOT NULL DEFAULT 0,
    ADD COLUMN changed_at bigint NOT NULL DEFAULT 0;

GRANT UPDATE ON voters TO isochrone_app;
