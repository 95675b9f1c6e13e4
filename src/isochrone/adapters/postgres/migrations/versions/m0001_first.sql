-- The first tables. Instants are bigint nanoseconds UTC; every tenant's row carries its org_id.
-- Usage has no foreign keys on purpose: what was used is booked even if its key is long gone.

CREATE TABLE organisations (
    id          text PRIMARY KEY,
    name        text NOT NULL UNIQUE,
    created_at  bigint NOT NULL
);

CREATE TABLE projects (
    id          text PRIMARY KEY,
    org_id      text NOT NULL REFERENCES organisations,
    name        text NOT NULL,
    created_at  bigint NOT NULL,
    UNIQUE (org_id, name)
);

-- A person or program that uses the Control API; org_id is null for the operator of the cloud.
CREATE TABLE principals (
    id            text PRIMARY KEY,
    org_id        text REFERENCES organisations,
    name          text NOT NULL,
    role          text NOT NULL CHECK (role IN
                  ('owner', 'admin', 'developer', 'billing', 'auditor', 'operator')),
    token_sha256  text NOT NULL UNIQUE,
    created_at    bigint NOT NULL,
    revoked_at    bigint,
    CHECK ((role = 'operator') = (org_id IS NULL))
);

CREATE TABLE policies (
    id          text PRIMARY KEY,
    org_id      text NOT NULL REFERENCES organisations,
    name        text NOT NULL,
    residency   text[] NOT NULL CHECK (cardinality(residency) > 0),
    transit     text[] NOT NULL CHECK (cardinality(transit) > 0),
    created_at  bigint NOT NULL,
    UNIQUE (org_id, residency, transit)
);

CREATE TABLE api_keys (
    id             text PRIMARY KEY,
    org_id         text NOT NULL REFERENCES organisations,
    project_id     text NOT NULL REFERENCES projects,
    policy_id      text NOT NULL REFERENCES policies,
    name           text NOT NULL,
    secret_sha256  text NOT NULL UNIQUE,
    classes        text[] NOT NULL CHECK (cardinality(classes) > 0),
    created_at     bigint NOT NULL,
    revoked_at     bigint
);
CREATE INDEX api_keys_by_org ON api_keys (org_id, id);

CREATE TABLE models (
    name            text PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('chat', 'embedding')),
    revision        text,
    context_tokens  integer NOT NULL CHECK (context_tokens > 0),
    created_at      bigint NOT NULL
);

CREATE TABLE sites (
    name           text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9-]*$'),
    country        text CHECK (country ~ '^[A-Z]{2}$'),
    operator       text,
    parent         text,
    latitude_deg   double precision NOT NULL CHECK (latitude_deg BETWEEN -90 AND 90),
    longitude_deg  double precision NOT NULL CHECK (longitude_deg BETWEEN -180 AND 180),
    hardware       jsonb NOT NULL DEFAULT '[]',
    host           text,
    port           integer CHECK (port BETWEEN 1 AND 65535),
    public_url     text,
    peer_key       text,
    nats_key       text,
    created_at     bigint NOT NULL,
    joined_at      bigint,
    removed_at     bigint,  -- kept after its removal, so that its agent can be told to stop
    draining       boolean NOT NULL DEFAULT false
);

-- One-time tokens with which a site joins; used_at is set in the transaction that admits it.
CREATE TABLE site_tokens (
    token_sha256  text PRIMARY KEY,
    site          text NOT NULL REFERENCES sites,
    created_at    bigint NOT NULL,
    used_at       bigint,
    expires_at    bigint NOT NULL
);

CREATE TABLE links (
    site    text NOT NULL REFERENCES sites,
    peer    text NOT NULL REFERENCES sites,
    rtt_ms  double precision NOT NULL CHECK (rtt_ms >= 0),
    source  text NOT NULL,
    PRIMARY KEY (site, peer)
);

CREATE TABLE deployments (
    site            text NOT NULL REFERENCES sites,
    model           text NOT NULL REFERENCES models,
    replicas        integer NOT NULL CHECK (replicas >= 0),
    engine          jsonb NOT NULL,
    context_tokens  integer NOT NULL CHECK (context_tokens > 0),
    PRIMARY KEY (site, model)
);

-- Writes that carried the caller's idempotency key, and the id of the row that each one made.
CREATE TABLE idempotency (
    caller        text NOT NULL,
    key           text NOT NULL,
    request_hash  text NOT NULL,
    resource      text NOT NULL,
    created_at    bigint NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

-- Which world file the estate was last made to match.
CREATE TABLE world (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    fingerprint    text NOT NULL,
    reconciled_at  bigint NOT NULL
);

-- The serial of signed entries: one row, only ever raised.
CREATE TABLE view_serial (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    serial  bigint NOT NULL CHECK (serial >= 0)
);
INSERT INTO view_serial (serial) VALUES (0);

-- Who may run a loop; the epoch grows with every change of holder and fences off a frozen one.
CREATE TABLE leases (
    name        text PRIMARY KEY,
    holder      text NOT NULL,
    epoch       bigint NOT NULL CHECK (epoch > 0),
    expires_at  bigint NOT NULL
);

-- Exactly one row per request: of several reports the one that core/metering/merge.py prefers.
-- booked_at is when the present one was booked.
CREATE TABLE usage (
    request_id         uuid PRIMARY KEY,
    org_id             text NOT NULL,
    project_id         text NOT NULL,
    key_id             text NOT NULL,
    client_request_id  text,
    endpoint           text NOT NULL,
    stream             boolean NOT NULL,
    class              text NOT NULL,
    model              text NOT NULL,
    revision           text,
    ingress_site       text NOT NULL,
    ingress_country    text,
    serving_site       text,
    serving_country    text,
    replica            text,
    received_at        bigint NOT NULL,
    finished_at        bigint NOT NULL,
    chosen_ms          double precision,
    sent_ms            double precision,
    first_byte_ms      double precision,
    total_ms           double precision NOT NULL,
    input_uncached     bigint NOT NULL CHECK (input_uncached >= 0),
    input_cached       bigint NOT NULL CHECK (input_cached >= 0),
    output             bigint NOT NULL CHECK (output >= 0),
    token_source       text NOT NULL,
    outcome            text NOT NULL,
    status             integer NOT NULL,
    reason             text,
    reporter           text NOT NULL,
    attempts           integer NOT NULL,
    decision           jsonb,
    booked_at          bigint NOT NULL
);
CREATE INDEX usage_by_time ON usage (received_at, request_id);
CREATE INDEX usage_by_org ON usage (org_id, received_at, request_id);

-- What serving gateways saw, one row per site that worked on the request; booked_at is when it was
-- heard. settled_at is set when the wait for the ingress is over: the request was booked, from the
-- ingress's report or from this.
CREATE TABLE evidence (
    LIKE usage INCLUDING CONSTRAINTS,
    settled_at  bigint,
    PRIMARY KEY (request_id, serving_site)
);
CREATE INDEX evidence_open ON evidence (booked_at) WHERE settled_at IS NULL;

-- Messages that could not be booked: kept for a person to look at, never dropped.
CREATE TABLE parked (
    id         text PRIMARY KEY,
    subject    text NOT NULL,
    payload    bytea NOT NULL,
    reason     text NOT NULL,
    parked_at  bigint NOT NULL
);

-- The role that the application works as; on managed servers it may exist already.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'isochrone_app') THEN
        CREATE ROLE isochrone_app NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'isochrone_app', 'SET') THEN
        EXECUTE format('GRANT isochrone_app TO %I WITH SET TRUE', current_user);
    END IF;
END $$;

GRANT USAGE ON SCHEMA public TO isochrone_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    organisations, projects, principals, policies, api_keys, models, sites, site_tokens, links,
    deployments, idempotency, world, leases TO isochrone_app;
GRANT SELECT, UPDATE ON view_serial TO isochrone_app;
-- The book is never deleted from.
GRANT SELECT, INSERT, UPDATE ON usage, evidence TO isochrone_app;
GRANT SELECT, INSERT ON parked TO isochrone_app;
DO $$
BEGIN
    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO isochrone_app', current_database());
END $$;
