-- Experiments that operators have control play on the twin. They are the cloud's, no tenant's.
CREATE TABLE experiment_runs (
    id        text PRIMARY KEY,
    title     text NOT NULL,
    wanted    text NOT NULL,
    is_own    boolean NOT NULL,
    policies  text[] NOT NULL,
    loads     double precision[] NOT NULL,
    requests  bigint,
    seed      bigint,
    is_full   boolean NOT NULL,
    state     text NOT NULL CHECK (state IN (
        'waiting', 'running', 'stopping', 'done', 'failed', 'stopped', 'interrupted'
    )),
    asked_by  text NOT NULL,
    asked_at  bigint NOT NULL,
    begun_at  bigint,
    ended_at  bigint,
    runs      bigint NOT NULL,
    about_s   double precision NOT NULL,
    problem   text
);
-- One at a time, whichever copy of control plays it.
CREATE UNIQUE INDEX one_experiment_runs ON experiment_runs ((true))
    WHERE state IN ('running', 'stopping');

GRANT SELECT, INSERT, UPDATE, DELETE ON experiment_runs TO isochrone_app;

CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON experiment_runs FOR EACH ROW
    EXECUTE FUNCTION write_audit('experiment', 'id', '', '');
