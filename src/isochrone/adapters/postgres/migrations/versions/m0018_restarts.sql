-- By the index of a replica: one of a generation up to this was asked to restart.
ALTER TABLE deployments ADD COLUMN restart_up_to bigint[] NOT NULL DEFAULT '{}';
-- How many ran before an operator stopped the site; at_once: without finishing their work.
ALTER TABLE deployments ADD COLUMN stopped_replicas integer CHECK (stopped_replicas >= 0);
ALTER TABLE deployments ADD COLUMN at_once boolean NOT NULL DEFAULT false;
ALTER TABLE deployments ADD CONSTRAINT stopped_runs_nothing
    CHECK (stopped_replicas IS NULL OR replicas = 0);
