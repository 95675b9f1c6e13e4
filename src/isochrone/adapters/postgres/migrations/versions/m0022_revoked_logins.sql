-- User keys of sites that NATS refuses, from `refused_from` on, with what was issued until
-- `revoked_at`. Rows stay for ever: logins do not end by themselves.
CREATE TABLE revoked_logins (
    user_key      text PRIMARY KEY,
    site          text NOT NULL REFERENCES sites,
    revoked_at    bigint NOT NULL,
    refused_from  bigint NOT NULL
);

GRANT SELECT, INSERT, UPDATE ON revoked_logins TO isochrone_app;

CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON revoked_logins FOR EACH ROW
    EXECUTE FUNCTION write_audit('revoked_login', 'site', '', 'user_key');
