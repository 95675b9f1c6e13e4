-- Empty caches mean: as residency. What was stored before bounds no logs.
ALTER TABLE policies
    ADD COLUMN caches text[] NOT NULL DEFAULT '{}',
    ADD COLUMN logs   text[] NOT NULL DEFAULT '{any}' CHECK (cardinality(logs) > 0),
    DROP CONSTRAINT policies_org_id_residency_transit_key,
    ADD CONSTRAINT policies_of_one_organisation_differ
        UNIQUE (org_id, residency, transit, caches, logs);

-- The countries that the way between two sites passes, as its operator states them; null: not
-- stated.
ALTER TABLE links ADD COLUMN via text[] CHECK (cardinality(via) > 0);
