-- Since when nothing new is made in it and none of its keys works; all that it has stays.
ALTER TABLE organisations ADD COLUMN closed_at bigint;
ALTER TABLE projects ADD COLUMN closed_at bigint;

-- Evidence of days that left the book, file by file, as `detached_days` has usage.
CREATE TABLE detached_evidence (
    day_at       bigint NOT NULL CHECK (day_at % 86400000000000 = 0),
    part         integer NOT NULL CHECK (part >= 0),
    rows         bigint NOT NULL CHECK (rows > 0),
    digest       bit(128) NOT NULL,
    file         text NOT NULL UNIQUE,
    file_sha256  text NOT NULL,
    file_bytes   bigint NOT NULL,
    detached_at  bigint NOT NULL,
    PRIMARY KEY (day_at, part)
);

-- Whose evidence it was and what decides whether a later one is better: records of
-- core/metering/detached.py, in their order, some hundred to a row.
CREATE TABLE detached_evidence_ids (
    day_at    bigint NOT NULL,
    part      integer NOT NULL,
    chunk     bigint NOT NULL,
    first_id  uuid NOT NULL,
    last_id   uuid NOT NULL,
    marks     bytea NOT NULL,
    PRIMARY KEY (day_at, part, chunk),
    FOREIGN KEY (day_at, part) REFERENCES detached_evidence
);
ALTER TABLE detached_evidence_ids ALTER COLUMN marks SET STORAGE EXTERNAL;
CREATE INDEX detached_evidence_ids_by_id ON detached_evidence_ids (day_at, first_id);

GRANT SELECT, INSERT ON detached_evidence, detached_evidence_ids TO isochrone_app;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON detached_evidence FOR EACH ROW
    EXECUTE FUNCTION write_audit('detached_evidence', 'file', '', '');

-- Which site's evidence: names have any length, marks have not.
CREATE FUNCTION site_mark(site text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT substring(sha256(convert_to(coalesce(site, ''), 'UTF8')) FOR 8)
$$;

-- Removes the evidence of a day, if its latest part says all of it and nothing waits to be settled.
CREATE FUNCTION drop_evidence_day(day bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    latest  integer;
    stated  bigint;
    kept    bigint;
    gone    bigint;
BEGIN
    SELECT d.part, d.rows INTO latest, stated FROM public.detached_evidence d
        WHERE d.day_at = day ORDER BY d.part DESC LIMIT 1;
    SELECT sum(length(i.marks)) / 40 INTO kept FROM public.detached_evidence_ids i
        WHERE i.day_at = day AND i.part = latest;
    DELETE FROM public.evidence e WHERE e.request_id >= public.first_id_of_day(day)
        AND e.request_id < public.first_id_of_day(day + 86400000000000)
        AND e.settled_at IS NOT NULL;
    GET DIAGNOSTICS gone = ROW_COUNT;
    IF stated IS DISTINCT FROM gone OR kept IS DISTINCT FROM gone THEN
        RAISE EXCEPTION 'evidence of day %: % rows, % stated, % kept', day, gone, stated, kept
            USING ERRCODE = 'check_violation';
    END IF;
END $$;

-- Forgets what stands for the detached evidence of a day, if all of it is rows again.
CREATE FUNCTION forget_detached_evidence(day bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    missing bigint;
BEGIN
    SELECT count(*) INTO missing FROM (
        SELECT encode(substring(i.marks FROM 40 * n + 1 FOR 16), 'hex')::uuid AS id,
               substring(i.marks FROM 40 * n + 17 FOR 8) AS site
        FROM public.detached_evidence_ids i, generate_series(0, length(i.marks) / 40 - 1) AS n
        WHERE i.day_at = day
    ) AS known WHERE NOT EXISTS (
        SELECT FROM public.evidence e WHERE e.request_id = known.id
        AND public.site_mark(e.serving_site) = known.site
    );
    IF missing <> 0 THEN
        RAISE EXCEPTION 'evidence of day %: % pieces are not there', day, missing
            USING ERRCODE = 'check_violation';
    END IF;
    DELETE FROM public.detached_evidence_ids WHERE day_at = day;
    DELETE FROM public.detached_evidence WHERE day_at = day;
END $$;

DO $$
DECLARE
    each regprocedure;
BEGIN
    FOREACH each IN ARRAY ARRAY[
        'drop_evidence_day(bigint)', 'forget_detached_evidence(bigint)'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', each);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO isochrone_app', each);
    END LOOP;
END $$;
