-- Usage in partitions by the day of its request id: a UUIDv7 begins with the milliseconds at which
-- it was made, so each request has one place, and its id alone keeps it once. Partitions lie in a
-- schema that the application may not enter: it reaches rows through `usage` only, where the policy
-- that keeps tenants apart is.
CREATE SCHEMA usage_days;
REVOKE ALL ON SCHEMA usage_days FROM PUBLIC;

-- The smallest id of a day; days are their first nanosecond, UTC.
CREATE FUNCTION first_id_of_day(day bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(day / 1000000), 12, '0') || '00000000000000000000')::uuid
$$;
CREATE FUNCTION day_of_id(id uuid) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('x' || left(id::text, 8) || substr(id::text, 10, 4))::bit(48)::bigint
           / 86400000 * 86400000000000
$$;

ALTER TABLE usage RENAME TO usage_before;
ALTER TABLE usage_before RENAME CONSTRAINT usage_pkey TO usage_before_pkey;
ALTER INDEX usage_by_time RENAME TO usage_before_by_time;
ALTER INDEX usage_by_org RENAME TO usage_before_by_org;
CREATE TABLE usage (
    LIKE usage_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS, PRIMARY KEY (request_id)
) PARTITION BY RANGE (request_id);
CREATE INDEX usage_by_time ON usage (received_at, request_id);
CREATE INDEX usage_by_org ON usage (org_id, received_at, request_id);
GRANT SELECT, INSERT, UPDATE ON usage TO isochrone_app;
SELECT keep_tenants_apart('usage');

-- What has no partition of its own: ids of days that are far, late rows of days that were detached.
CREATE TABLE usage_days.other PARTITION OF usage DEFAULT;

-- Days that were detached, file by file: late rows of a day make another part. digest: of all ids
-- with their tokens, by exclusive or; `file` lies in the archive of control.
CREATE TABLE detached_days (
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

-- The ids of their requests, each with what decides whether a later report is a better one: records
-- of core/metering/detached.py, in the order of ids, some thousand to a row.
CREATE TABLE detached_ids (
    day_at    bigint NOT NULL,
    part      integer NOT NULL,
    first_id  uuid NOT NULL,
    last_id   uuid NOT NULL,
    marks     bytea NOT NULL,
    PRIMARY KEY (day_at, part, first_id),
    FOREIGN KEY (day_at, part) REFERENCES detached_days
);
ALTER TABLE detached_ids ALTER COLUMN marks SET STORAGE EXTERNAL;  -- random bytes do not shrink

-- What their rows add to the sums by hour, so that those can still be made again.
CREATE TABLE detached_hours (
    day_at          bigint NOT NULL,
    part            integer NOT NULL,
    org_id          text NOT NULL,
    project_id      text NOT NULL,
    hour_at         bigint NOT NULL,
    model           text NOT NULL,
    class           text NOT NULL,
    site            text NOT NULL,
    bound           boolean NOT NULL,
    requests        bigint NOT NULL,
    input_uncached  bigint NOT NULL,
    input_cached    bigint NOT NULL,
    output          bigint NOT NULL,
    digest          bit(128) NOT NULL,
    PRIMARY KEY (day_at, part, org_id, project_id, hour_at, model, class, site, bound),
    FOREIGN KEY (day_at, part) REFERENCES detached_days
);
CREATE INDEX detached_hours_by_time ON detached_hours (hour_at);

-- Better reports of requests whose day was detached: kept until it is attached, then booked.
CREATE TABLE late_reports (
    request_id  uuid NOT NULL,
    digest      text NOT NULL,
    org_id      text NOT NULL,
    day_at      bigint NOT NULL,
    report      jsonb NOT NULL,
    heard_at    bigint NOT NULL,
    booked_at   bigint,
    PRIMARY KEY (request_id, digest)
);
CREATE INDEX late_reports_open ON late_reports (day_at) WHERE booked_at IS NULL;

-- Days that somebody attached, and until when they are not detached again.
CREATE TABLE attached_days (
    day_at    bigint PRIMARY KEY,
    until_at  bigint NOT NULL
);

GRANT SELECT, INSERT ON detached_days, detached_ids, detached_hours TO isochrone_app;
GRANT SELECT, INSERT, UPDATE ON late_reports, attached_days TO isochrone_app;
SELECT keep_tenants_apart('detached_hours');
SELECT keep_tenants_apart('late_reports');

CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON detached_days FOR EACH ROW
    EXECUTE FUNCTION write_audit('detached_day', 'file', '', '');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON attached_days FOR EACH ROW
    EXECUTE FUNCTION write_audit('attached_day', 'day_at', '', '');

-- The functions below do what only the owner may; each changes nothing that can be lost.

CREATE FUNCTION usage_day_name(day bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'day_' || to_char(date '1970-01-01' + (day / 86400000000000)::int, 'YYYY_MM_DD')
$$;

-- Makes the partition of a day and moves what `other` has of it there; false when there is one.
CREATE FUNCTION keep_usage_day(day bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name   text := public.usage_day_name(day);
    least  uuid := public.first_id_of_day(day);
    beyond uuid := public.first_id_of_day(day + 86400000000000);
BEGIN
    IF day % 86400000000000 <> 0 OR day < 0 THEN
        RAISE EXCEPTION '% is not the start of a day', day USING ERRCODE = 'data_exception';
    END IF;
    PERFORM pg_advisory_xact_lock(746132, 0);
    IF to_regclass('usage_days.' || name) IS NOT NULL THEN
        RETURN false;
    END IF;
    LOCK TABLE usage_days.other IN ACCESS EXCLUSIVE MODE;
    EXECUTE format(
        'CREATE TABLE usage_days.%I (LIKE public.usage INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
        name
    );
    EXECUTE format(
        'WITH moved AS (DELETE FROM usage_days.other WHERE request_id >= %L AND request_id < %L'
        ' RETURNING *) INSERT INTO usage_days.%I SELECT * FROM moved', least, beyond, name
    );
    EXECUTE format(
        'ALTER TABLE public.usage ATTACH PARTITION usage_days.%I FOR VALUES FROM (%L) TO (%L)',
        name, least, beyond
    );
    RETURN true;
END $$;

-- Until the end of the transaction nobody writes to the rows of a day that has a partition.
CREATE FUNCTION hold_usage_day(day bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('LOCK TABLE usage_days.%I IN SHARE MODE', public.usage_day_name(day));
EXCEPTION WHEN undefined_table THEN
    RAISE EXCEPTION 'day % has no partition any more', public.usage_day_name(day)
        USING ERRCODE = 'lock_not_available';
END $$;

-- Takes the partition of a day away, if it is empty or its latest part says all of it: as many
-- rows, as many ids.
CREATE FUNCTION drop_usage_day(day bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name   text := public.usage_day_name(day);
    latest integer;
    stated bigint;
    kept   bigint;
    there  bigint;
BEGIN
    SELECT d.part, d.rows INTO latest, stated FROM public.detached_days d
        WHERE d.day_at = day ORDER BY d.part DESC LIMIT 1;
    SELECT sum(length(i.marks)) / 33 INTO kept FROM public.detached_ids i
        WHERE i.day_at = day AND i.part = latest;
    EXECUTE format('SELECT count(*) FROM usage_days.%I', name) INTO there;
    IF there = 0 THEN
        NULL;  -- nothing to lose
    ELSIF stated IS DISTINCT FROM there OR kept IS DISTINCT FROM there THEN
        RAISE EXCEPTION 'day %: % rows, % stated, % ids kept', name, there, stated, kept
            USING ERRCODE = 'check_violation';
    END IF;
    EXECUTE format('ALTER TABLE public.usage DETACH PARTITION usage_days.%I', name);
    EXECUTE format('DROP TABLE usage_days.%I', name);
END $$;

-- Forgets what stands for a detached day, if all its ids are rows again.
CREATE FUNCTION forget_detached_day(day bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    missing bigint;
BEGIN
    EXECUTE format(
        'SELECT count(*) FROM (SELECT'
        ' encode(substring(marks FROM 33 * n + 1 FOR 16), ''hex'')::uuid AS id'
        ' FROM public.detached_ids, generate_series(0, length(marks) / 33 - 1) AS n'
        ' WHERE day_at = %L) AS known WHERE NOT EXISTS ('
        ' SELECT FROM public.usage there WHERE there.request_id = known.id'
        ' AND there.request_id >= %L AND there.request_id < %L)',
        day, public.first_id_of_day(day), public.first_id_of_day(day + 86400000000000)
    ) INTO missing;
    IF missing <> 0 THEN
        RAISE EXCEPTION 'day %: % requests are not there', public.usage_day_name(day), missing
            USING ERRCODE = 'check_violation';
    END IF;
    DELETE FROM public.detached_hours WHERE day_at = day;
    DELETE FROM public.detached_ids WHERE day_at = day;
    DELETE FROM public.detached_days WHERE day_at = day;
END $$;

-- Which days have rows, and how many of them, about; for the loop that detaches.
CREATE FUNCTION usage_days_there() RETURNS TABLE (day bigint, is_own boolean, estimate bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT (to_date(substr(c.relname, 5), 'YYYY_MM_DD') - date '1970-01-01')::bigint
           * 86400000000000, true, c.reltuples::bigint
    FROM pg_class c WHERE c.relnamespace = 'usage_days'::regnamespace AND c.relkind = 'r'
      AND c.relname LIKE 'day\_%'
    UNION ALL
    (SELECT DISTINCT public.day_of_id(request_id), false, 0 FROM usage_days.other
     ORDER BY 1 DESC LIMIT 1000)
$$;

DO $$
DECLARE
    each regprocedure;
BEGIN
    FOREACH each IN ARRAY ARRAY[
        'keep_usage_day(bigint)', 'hold_usage_day(bigint)', 'drop_usage_day(bigint)',
        'forget_detached_day(bigint)', 'usage_days_there()'
    ]::regprocedure[] LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', each);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO isochrone_app', each);
    END LOOP;
END $$;

-- What is booked already.
SELECT keep_usage_day(day) FROM (
    SELECT DISTINCT day_of_id(request_id) AS day FROM usage_before WHERE request_id IS NOT NULL
) AS days ORDER BY day;
INSERT INTO usage SELECT * FROM usage_before;
DROP TABLE usage_before;
