-- How classes share the slots of a deployment, as core/world/site_policy.py has it; NULL: as usual.
ALTER TABLE deployments ADD COLUMN admission jsonb;
