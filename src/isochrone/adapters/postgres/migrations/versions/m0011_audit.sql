-- Who changed what, and how it was before and after. org_id: whose it is, null for the cloud's own.
-- `at` is the database's clock: whoever asks for a change does not get to date it.
CREATE TABLE audit (
    serial   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       bigint NOT NULL,
    org_id   text,
    actor    text NOT NULL,
    kind     text NOT NULL,
    subject  text NOT NULL,
    change   text NOT NULL CHECK (change IN ('made', 'changed', 'removed')),
    before   jsonb,
    after    jsonb,
    CHECK ((change = 'made') = (before IS NULL) AND (change = 'removed') = (after IS NULL))
);
CREATE INDEX audit_by_org ON audit (org_id, serial);

-- The application may read, and only the triggers below write, as the owner of this function: what
-- happened cannot be left out, made up or attributed to nobody.
GRANT SELECT ON audit TO isochrone_app;

-- Arguments of the trigger: the noun, the columns that name a row, the column with its tenant (or
-- ''), and the columns whose values are for nobody to read.
CREATE FUNCTION write_audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was     jsonb;
    is_now  jsonb;
    present jsonb;
    hidden  text;
    differs boolean;
BEGIN
    IF TG_OP <> 'INSERT' THEN was := to_jsonb(OLD); END IF;
    IF TG_OP <> 'DELETE' THEN is_now := to_jsonb(NEW); END IF;
    IF was = is_now THEN
        RETURN NULL;
    END IF;
    present := coalesce(is_now, was);
    FOREACH hidden IN ARRAY string_to_array(TG_ARGV[3], ',') LOOP
        differs := was ->> hidden IS DISTINCT FROM is_now ->> hidden;
        IF was ->> hidden IS NOT NULL THEN
            was := jsonb_set(was, ARRAY[hidden], '"(hidden)"');
        END IF;
        IF is_now ->> hidden IS NOT NULL THEN
            is_now := jsonb_set(is_now, ARRAY[hidden],
                CASE WHEN differs AND was IS NOT NULL THEN '"(hidden, another)"'::jsonb
                     ELSE '"(hidden)"'::jsonb END);
        END IF;
    END LOOP;
    -- Named in full: a temporary table of that name would come first.
    INSERT INTO public.audit (at, org_id, actor, kind, subject, change, before, after) VALUES (
        (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint,
        CASE WHEN TG_ARGV[2] <> '' THEN present ->> TG_ARGV[2] END,
        coalesce(nullif(current_setting('isochrone.actor', true), ''), 'database:' || session_user),
        TG_ARGV[0],
        (SELECT string_agg(present ->> name, '/' ORDER BY place)
           FROM unnest(string_to_array(TG_ARGV[1], ',')) WITH ORDINALITY AS part (name, place)),
        CASE TG_OP WHEN 'INSERT' THEN 'made' WHEN 'UPDATE' THEN 'changed' ELSE 'removed' END,
        was, is_now
    );
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION write_audit() FROM PUBLIC;

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the table % is only ever added to', TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON organisations FOR EACH ROW
    EXECUTE FUNCTION write_audit('organisation', 'id', 'id', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON projects FOR EACH ROW
    EXECUTE FUNCTION write_audit('project', 'id', 'org_id', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON principals FOR EACH ROW
    EXECUTE FUNCTION write_audit('principal', 'id', 'org_id', 'token_sha256,former_sha256');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON people FOR EACH ROW
    EXECUTE FUNCTION write_audit('person', 'principal_id', 'org_id', 'name,email');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON policies FOR EACH ROW
    EXECUTE FUNCTION write_audit('policy', 'id', 'org_id', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON api_keys FOR EACH ROW
    EXECUTE FUNCTION write_audit('key', 'id', 'org_id', 'secret_sha256');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON entitlements FOR EACH ROW
    EXECUTE FUNCTION write_audit('entitlement', 'id', 'org_id', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON voters FOR EACH ROW
    EXECUTE FUNCTION write_audit('voters', 'one', '', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON sites FOR EACH ROW
    EXECUTE FUNCTION write_audit('site', 'name', '', 'peer_key,nats_key');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON site_tokens FOR EACH ROW
    EXECUTE FUNCTION write_audit('site_token', 'site', '', 'token_sha256');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON models FOR EACH ROW
    EXECUTE FUNCTION write_audit('model', 'name', '', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON deployments FOR EACH ROW
    EXECUTE FUNCTION write_audit('deployment', 'site,model', '', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON world FOR EACH ROW
    EXECUTE FUNCTION write_audit('world', 'fingerprint', '', '');
