-- A transaction names its tenant in isochrone.tenant: an organisation's id, '*' for every one of
-- them (what control does by itself, operators), nothing for none. This binds the owner of the
-- tables too. For tables of later migrations: SELECT keep_tenants_apart('NAME').
CREATE FUNCTION keep_tenants_apart(kept regclass, tenant name DEFAULT 'org_id') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', kept);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', kept);
    -- The setting is read in a subquery, which is evaluated once a statement and not once a row.
    EXECUTE format(
        'CREATE POLICY tenants_apart ON %s USING ('
        '(SELECT current_setting(''isochrone.tenant'', true)) = ''*'''
        ' OR %I = (SELECT current_setting(''isochrone.tenant'', true)))',
        kept, tenant
    );
END $$;
REVOKE EXECUTE ON FUNCTION keep_tenants_apart(regclass, name) FROM PUBLIC;

-- Every table that has a tenant, those of migrations before this one included.
DO $$
DECLARE
    each regclass;
BEGIN
    FOR each IN
        SELECT c.oid FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
          AND a.attname = 'org_id' AND NOT a.attisdropped AND NOT c.relrowsecurity
    LOOP
        PERFORM keep_tenants_apart(each);
    END LOOP;
END $$;
SELECT keep_tenants_apart('organisations', 'id');

-- A ground tells the axes of a policy, so it is for whoever may see the policy.
ALTER TABLE grounds ENABLE ROW LEVEL SECURITY;
ALTER TABLE grounds FORCE ROW LEVEL SECURITY;
CREATE POLICY tenants_apart ON grounds USING (
    (SELECT current_setting('isochrone.tenant', true)) = '*'
    OR EXISTS (SELECT FROM policies WHERE policies.id = ground ->> 'policy_id')
);
-- A message that could not be booked may be anybody's.
ALTER TABLE parked ENABLE ROW LEVEL SECURITY;
ALTER TABLE parked FORCE ROW LEVEL SECURITY;
CREATE POLICY tenants_apart ON parked USING (
    (SELECT current_setting('isochrone.tenant', true)) = '*'
);
-- The owner of write_audit() is bound as well, and writes what it is told, whoever's it is.
CREATE POLICY always_added_to ON audit FOR INSERT WITH CHECK (true);
