-- bound: the policy of the key named the country that served; kept, since a price may depend on it.
ALTER TABLE usage ADD COLUMN bound boolean NOT NULL DEFAULT false;
UPDATE usage u SET bound = true
FROM api_keys k JOIN policies p ON p.id = k.policy_id
WHERE k.id = u.key_id AND u.serving_country = ANY (p.residency);

-- What stands for a request in the digest of its hour.
CREATE FUNCTION usage_mark(request uuid, uncached bigint, cached bigint, output bigint)
RETURNS bit(128) LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('x' || substr(encode(sha256(convert_to(
        request::text || '/' || uncached || '/' || cached || '/' || output, 'UTF8')), 'hex'), 1, 32
    ))::bit(128)
$$;

-- Usage of requests by the hour in which they came: sums over `usage`, which can be made again.
-- digest: the marks of all requests in it, by exclusive or. due: changed since it was charged.
CREATE TABLE request_hours (
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
    due             boolean NOT NULL DEFAULT true,
    PRIMARY KEY (org_id, project_id, hour_at, model, class, site, bound)
) WITH (fillfactor = 70);
CREATE INDEX request_hours_due ON request_hours (hour_at, org_id, project_id) WHERE due;

-- By time, roughly the order of insertion.
CREATE INDEX request_hours_by_time ON request_hours USING brin (hour_at);
-- What was processed, or finished, counts.
INSERT INTO request_hours
    SELECT org_id, project_id, received_at - received_at % 3600000000000, model, class,
           coalesce(serving_site, ''), bound, count(*), sum(input_uncached), sum(input_cached),
           sum(output), bit_xor(usage_mark(request_id, input_uncached, input_cached, output))
    FROM usage WHERE token_source <> 'none' OR outcome = 'finished'
    GROUP BY 1, 2, 3, 4, 5, 6, 7;

-- What was used of other meters, event by event; only ever added to. amount: of a time-weighted
-- meter the level from from_at until before until_at. request_id: a request of which this meter is
-- said anew; was: what was booked of it. replaces: the event that no longer counts.
CREATE TABLE meter_events (
    org_id      text NOT NULL,
    id          text NOT NULL,
    project_id  text NOT NULL,
    meter       text NOT NULL,
    amount      numeric(38, 0) NOT NULL,
    from_at     bigint NOT NULL,
    until_at    bigint,
    subject     text NOT NULL,
    model       text NOT NULL,
    class       text NOT NULL,
    site        text NOT NULL,
    bound       boolean NOT NULL,
    kind        text NOT NULL,
    replaces    text,
    request_id  uuid,
    was         numeric(38, 0) NOT NULL,
    is_metered  boolean NOT NULL,
    arrived_at  bigint NOT NULL,
    PRIMARY KEY (org_id, id),
    UNIQUE (org_id, replaces),
    FOREIGN KEY (org_id, replaces) REFERENCES meter_events (org_id, id)
);
CREATE UNIQUE INDEX meter_events_of_requests ON meter_events (org_id, request_id, meter)
    WHERE request_id IS NOT NULL AND replaces IS NULL;
CREATE INDEX meter_events_by_time ON meter_events (org_id, project_id, meter, from_at);
CREATE INDEX meter_events_unmetered ON meter_events (arrived_at) WHERE NOT is_metered;

CREATE TABLE meter_hours (
    org_id      text NOT NULL,
    project_id  text NOT NULL,
    hour_at     bigint NOT NULL,
    meter       text NOT NULL,
    model       text NOT NULL,
    class       text NOT NULL,
    site        text NOT NULL,
    bound       boolean NOT NULL,
    kind        text NOT NULL,
    amount      numeric(38, 0) NOT NULL,
    digest      bit(128) NOT NULL,
    due         boolean NOT NULL DEFAULT true,
    PRIMARY KEY (org_id, project_id, hour_at, meter, model, class, site, bound, kind)
);
CREATE INDEX meter_hours_by_time ON meter_hours USING brin (hour_at);
CREATE INDEX meter_hours_due ON meter_hours (hour_at, org_id, project_id) WHERE due;

-- Price sheets: a version is never changed. only_for: the organisation that it was made for; null:
-- everybody, so that everybody may read it.
CREATE TABLE price_sheets (
    id          text NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    only_for    text REFERENCES organisations,
    currency    text NOT NULL,
    valid_from  bigint NOT NULL,
    sheet       jsonb NOT NULL,
    created_at  bigint NOT NULL,
    PRIMARY KEY (id, version)
);
ALTER TABLE price_sheets ENABLE ROW LEVEL SECURITY;
ALTER TABLE price_sheets FORCE ROW LEVEL SECURITY;
CREATE POLICY tenants_apart ON price_sheets USING (
    only_for IS NULL
    OR (SELECT current_setting('isochrone.tenant', true)) = '*'
    OR only_for = (SELECT current_setting('isochrone.tenant', true))
) WITH CHECK ((SELECT current_setting('isochrone.tenant', true)) = '*');

-- The ledger. A posting is its entries; neither is ever changed or deleted.
CREATE TABLE postings (
    org_id       text NOT NULL,
    key          text NOT NULL CHECK (key <> ''),
    number       bigint GENERATED ALWAYS AS IDENTITY,
    kind         text NOT NULL CHECK (kind IN
                 ('credit', 'hold', 'settle', 'void', 'charge', 'correction')),
    at           bigint NOT NULL,
    currency     text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    about        text NOT NULL,
    unwinds      text,
    recorded_at  bigint NOT NULL,
    PRIMARY KEY (org_id, key),
    UNIQUE (org_id, unwinds),
    FOREIGN KEY (org_id, unwinds) REFERENCES postings (org_id, key),
    CHECK ((kind = 'correction') = (unwinds IS NOT NULL))
);
CREATE UNIQUE INDEX postings_in_order ON postings (number);

CREATE TABLE entries (
    org_id       text NOT NULL,
    key          text NOT NULL,
    line         smallint NOT NULL,
    account      text NOT NULL CHECK (account IN
                 ('credit', 'held', 'owed', 'revenue', 'cash', 'rounding', 'breakage')),
    project_id   text NOT NULL,  -- '' for an account of the operator
    amount_pico  numeric(38, 0) NOT NULL CHECK (amount_pico <> 0),
    PRIMARY KEY (org_id, key, line),
    FOREIGN KEY (org_id, key) REFERENCES postings
);
CREATE INDEX entries_by_account ON entries (org_id, project_id, account);

CREATE FUNCTION sums_to_zero() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT sum(amount_pico) FROM entries WHERE org_id = NEW.org_id AND key = NEW.key)
        IS DISTINCT FROM 0 THEN
        RAISE EXCEPTION 'the entries of % do not sum to zero', NEW.key
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER sums_to_zero AFTER INSERT ON postings
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sums_to_zero();
CREATE CONSTRAINT TRIGGER sums_to_zero AFTER INSERT ON entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sums_to_zero();

-- What was charged for an hour of a meter; the highest revision stands, the others were unwound.
CREATE TABLE charges (
    org_id       text NOT NULL,
    project_id   text NOT NULL,
    item         text NOT NULL,
    hour_at      bigint NOT NULL,
    revision     integer NOT NULL CHECK (revision >= 0),
    quantity     numeric(38, 0) NOT NULL,
    amount_pico  numeric(38, 0) NOT NULL,
    currency     text NOT NULL,
    sheet        text NOT NULL,
    digest       text NOT NULL,
    charged_at   bigint NOT NULL,
    PRIMARY KEY (org_id, project_id, hour_at, item, revision)
);
CREATE INDEX charges_by_time ON charges USING brin (hour_at);
CREATE VIEW standing_charges WITH (security_invoker = true) AS
    SELECT DISTINCT ON (org_id, project_id, hour_at, item) *
    FROM charges ORDER BY org_id, project_id, hour_at, item, revision DESC;

-- Periods that were charged; closed_at: its bounds, recurring amounts and fees were, too.
CREATE TABLE charged_periods (
    org_id      text NOT NULL,
    project_id  text NOT NULL,
    begin_at    bigint NOT NULL,
    closed_at   bigint,
    PRIMARY KEY (org_id, project_id, begin_at)
);
CREATE INDEX charged_periods_open ON charged_periods (begin_at) WHERE closed_at IS NULL;

CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON meter_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_added_to BEFORE UPDATE OR DELETE OR TRUNCATE ON charges
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Holds as they stand: a projection of their postings that says when each expires.
CREATE TABLE holds (
    org_id       text NOT NULL,
    id           text NOT NULL,
    project_id   text NOT NULL,
    currency     text NOT NULL,
    amount_pico  numeric(38, 0) NOT NULL CHECK (amount_pico > 0),
    opened_at    bigint NOT NULL,
    expires_at   bigint NOT NULL,
    state        text NOT NULL CHECK (state IN ('open', 'settled', 'voided', 'expired')),
    used_pico    numeric(38, 0) NOT NULL,
    PRIMARY KEY (org_id, id)
);
CREATE INDEX holds_open ON holds (expires_at) WHERE state = 'open';

-- What engines counted, as their agents told it: the last reading of each day. A generation is one
-- life of a replica; run grows where its counters began anew within one.
CREATE TABLE engine_counts (
    replica     text NOT NULL,
    generation  bigint NOT NULL,
    run         integer NOT NULL,
    day_at      bigint NOT NULL,
    site        text NOT NULL,
    model       text NOT NULL,
    prompt      bigint NOT NULL CHECK (prompt >= 0),
    cached      bigint NOT NULL CHECK (cached >= 0),
    output      bigint NOT NULL CHECK (output >= 0),
    heard_at    bigint NOT NULL,
    PRIMARY KEY (replica, generation, run, day_at)
);
CREATE INDEX engine_counts_by_day ON engine_counts (day_at);

-- Reports of reconciliation, one a day.
CREATE TABLE reconciliations (
    day_at    bigint PRIMARY KEY,
    agrees    boolean NOT NULL,
    report    jsonb NOT NULL,
    made_at   bigint NOT NULL
);

GRANT SELECT, INSERT, UPDATE ON
    request_hours, meter_hours, charged_periods, holds, engine_counts TO isochrone_app;
GRANT SELECT, INSERT ON meter_events, price_sheets, postings, entries, charges, reconciliations
    TO isochrone_app;
GRANT SELECT ON standing_charges TO isochrone_app;

SELECT keep_tenants_apart(each::regclass) FROM unnest(ARRAY[
    'request_hours', 'meter_events', 'meter_hours', 'postings', 'entries', 'charges',
    'charged_periods', 'holds'
]) AS each;

-- What people do to prices, credits and usage is in the log; what follows by itself is not.
CREATE TRIGGER audited AFTER INSERT ON price_sheets FOR EACH ROW
    EXECUTE FUNCTION write_audit('price_sheet', 'id,version', 'only_for', '');
CREATE TRIGGER audited AFTER INSERT ON postings FOR EACH ROW
    WHEN (NEW.kind = 'credit' OR NEW.key LIKE 'correction/%')
    EXECUTE FUNCTION write_audit('posting', 'key', 'org_id', '');
CREATE TRIGGER audited AFTER INSERT ON meter_events FOR EACH ROW
    WHEN (NEW.request_id IS NOT NULL OR NEW.replaces IS NOT NULL)
    EXECUTE FUNCTION write_audit('meter_event', 'id', 'org_id', 'subject');
