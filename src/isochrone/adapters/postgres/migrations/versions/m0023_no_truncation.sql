-- TRUNCATE fires no trigger of rows, so what it removes would be in no entry of the audit log.
CREATE FUNCTION refuse_truncation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log would not tell what is truncated: DELETE from %', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

-- But for tables that refuse it already (32: a trigger of TRUNCATE).
DO $$
DECLARE
    each regclass;
BEGIN
    FOR each IN
        SELECT a.tgrelid FROM pg_trigger a WHERE a.tgname = 'audited' AND a.tgparentid = 0
          AND NOT EXISTS (
            SELECT FROM pg_trigger t WHERE t.tgrelid = a.tgrelid AND t.tgtype & 32 <> 0)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER not_truncated BEFORE TRUNCATE ON %s'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse_truncation()', each
        );
    END LOOP;
END $$;
