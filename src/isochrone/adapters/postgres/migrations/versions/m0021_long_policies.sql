-- An index holds 2,704 bytes of a row; axes may list hundreds of terms. The text of an array of
-- texts depends on nothing but the array, which PostgreSQL does not know of arrays in general.
CREATE FUNCTION axes_digest(residency text[], transit text[], caches text[], logs text[])
RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT sha256(convert_to(
        jsonb_build_array(residency, transit, caches, logs)::text, 'UTF8'
    ))
$$;

ALTER TABLE policies DROP CONSTRAINT policies_of_one_organisation_differ;
CREATE UNIQUE INDEX policies_of_one_organisation_differ
    ON policies (org_id, axes_digest(residency, transit, caches, logs));
