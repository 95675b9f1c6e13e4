-- Capacity sold once. slices: [{"site": ..., "tok_s": ...}]; they add up to tok_s and never change;
-- no foreign key to sites, because a slice outlives its home. Revoked ones are kept.
CREATE TABLE entitlements (
    id          text PRIMARY KEY,
    org_id      text NOT NULL REFERENCES organisations,
    project_id  text REFERENCES projects,
    name        text NOT NULL,
    model       text NOT NULL,
    class       text NOT NULL CHECK (class IN ('reserved', 'on_demand')),
    tok_s       bigint NOT NULL CHECK (tok_s > 0),
    residency   text[] NOT NULL CHECK (cardinality(residency) > 0),
    starts_at   bigint NOT NULL,
    ends_at     bigint NOT NULL CHECK (ends_at > starts_at),
    slices      jsonb NOT NULL,
    created_at  bigint NOT NULL,
    revoked_at  bigint
);
CREATE INDEX entitlements_by_org ON entitlements (org_id, id);

-- The sites whose votes make stewards: one row, written once. Two sets of voters at a time could
-- name two stewards.
CREATE TABLE voters (
    one    boolean PRIMARY KEY DEFAULT true CHECK (one),
    sites  text[] NOT NULL CHECK (cardinality(sites) % 2 = 1)
);

GRANT SELECT, INSERT, UPDATE ON entitlements TO isochrone_app;
GRANT SELECT, INSERT ON voters TO isochrone_app;
