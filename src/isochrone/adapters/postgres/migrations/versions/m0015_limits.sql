-- Limits that hold over all sites: of a key (with its project), a project, or an organisation.
-- amount: of a budget in 10^-12 of the currency, for each period.
ALTER TABLE api_keys ADD UNIQUE (org_id, project_id, id);
CREATE TABLE limits (
    id          text PRIMARY KEY,
    org_id      text NOT NULL REFERENCES organisations,
    project_id  text,
    key_id      text,
    kind        text NOT NULL CHECK (kind IN
                ('requests_per_min', 'tokens_per_min', 'concurrent', 'budget')),
    amount      bigint NOT NULL CHECK (amount > 0),
    period      text CHECK (period IN ('day', 'month')),
    currency    text CHECK (currency ~ '^[A-Z]{3}$'),
    created_at  bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (org_id, project_id, key_id, kind),
    FOREIGN KEY (org_id, project_id) REFERENCES projects (org_id, id),
    FOREIGN KEY (org_id, project_id, key_id) REFERENCES api_keys (org_id, project_id, id),
    CHECK (key_id IS NULL OR project_id IS NOT NULL),
    CHECK ((kind = 'budget') = (period IS NOT NULL AND currency IS NOT NULL))
);

-- What the requests that a budget counts came to, of those that came before an hour in its period:
-- a sum over usage and prices, which can be made again.
CREATE TABLE limit_sums (
    limit_id     text PRIMARY KEY REFERENCES limits ON DELETE CASCADE,
    org_id       text NOT NULL,
    before_at    bigint NOT NULL,
    spent_pico   numeric(38, 0) NOT NULL,
    summed_at    bigint NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON limits, limit_sums TO isochrone_app;

CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON limits FOR EACH ROW
    EXECUTE FUNCTION write_audit('limit', 'id', 'org_id', '');

SELECT keep_tenants_apart('limits');
SELECT keep_tenants_apart('limit_sums');
