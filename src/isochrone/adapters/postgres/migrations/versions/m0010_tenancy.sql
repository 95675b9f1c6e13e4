-- How many days after a member has left their personal fields are erased.
ALTER TABLE organisations
    ADD COLUMN retain_days integer NOT NULL DEFAULT 90 CHECK (retain_days BETWEEN 0 AND 3650);

-- What belongs together belongs to one organisation, whatever a statement forgets.
ALTER TABLE projects ADD UNIQUE (org_id, id);
ALTER TABLE policies ADD UNIQUE (org_id, id);

-- replaces: the key that this one was made for in a rotation.
ALTER TABLE api_keys
    ADD COLUMN scopes      text[] NOT NULL DEFAULT '{chat,embeddings,models,usage}' CHECK
        (cardinality(scopes) > 0 AND scopes <@ '{chat,embeddings,models,usage}'),
    ADD COLUMN expires_at  bigint,
    ADD COLUMN replaces    text REFERENCES api_keys,
    ADD FOREIGN KEY (org_id, project_id) REFERENCES projects (org_id, id),
    ADD FOREIGN KEY (org_id, policy_id) REFERENCES policies (org_id, id);

-- former_sha256: the secret before the last rotation, good until former_until.
ALTER TABLE principals
    ADD COLUMN kind           text NOT NULL DEFAULT 'person' CHECK (kind IN ('person', 'service')),
    ADD COLUMN expires_at     bigint,
    ADD COLUMN former_sha256  text UNIQUE,
    ADD COLUMN former_until   bigint,
    ADD CHECK ((former_sha256 IS NULL) = (former_until IS NULL));

-- All that is personal in the book, apart from it, so that it can be erased: everything else knows
-- a person by the id of their principal.
CREATE TABLE people (
    principal_id  text PRIMARY KEY REFERENCES principals,
    org_id        text REFERENCES organisations,  -- null for operators
    name          text,
    email         text,
    erased_at     bigint,
    CHECK ((erased_at IS NULL) = (name IS NOT NULL)),
    CHECK (erased_at IS NULL OR email IS NULL)
);
-- Nobody said until now who is a person; but for the operator that every book begins with, each
-- may be one, and names of services lose nothing by being erasable.
UPDATE principals SET kind = 'service' WHERE id = 'operator';
INSERT INTO people (principal_id, org_id, name)
    SELECT id, org_id, name FROM principals WHERE kind = 'person';
ALTER TABLE principals ALTER COLUMN name DROP NOT NULL;
UPDATE principals SET name = NULL WHERE kind = 'person';
ALTER TABLE principals ADD CHECK ((kind = 'service') = (name IS NOT NULL));

-- Whose the caller is; null for operators.
ALTER TABLE idempotency ADD COLUMN org_id text
    DEFAULT nullif(nullif(current_setting('isochrone.tenant', true), '*'), '');
UPDATE idempotency SET org_id = p.org_id FROM principals p WHERE caller = 'principal:' || p.id;
UPDATE idempotency SET org_id = k.org_id FROM api_keys k WHERE caller = 'key:' || k.id;

GRANT SELECT, INSERT, UPDATE ON people TO isochrone_app;
-- Members and keys are revoked, organisations and projects stay: what names them is for ever.
REVOKE DELETE ON organisations, projects, principals, policies, api_keys FROM isochrone_app;
