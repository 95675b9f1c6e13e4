-- Who may sign in with a name and a password. The name is often an e-mail address, so a row goes
-- when its member is revoked. password: scrypt, see control/passwords.py. is_given: whoever set it
-- knows it too, because it was not the member.
CREATE TABLE accounts (
    principal_id  text PRIMARY KEY REFERENCES principals,
    org_id        text REFERENCES organisations,  -- null for operators
    login         text NOT NULL UNIQUE CHECK (login = lower(login) AND login <> ''),
    password      text NOT NULL,
    is_given      boolean NOT NULL,
    changed_at    bigint NOT NULL
);
SELECT keep_tenants_apart('accounts');

-- Sign-ins that are not over. Never changed: made, and removed at the end.
CREATE TABLE sessions (
    secret_sha256  text PRIMARY KEY,
    principal_id   text NOT NULL REFERENCES accounts ON DELETE CASCADE,
    org_id         text REFERENCES organisations,
    begun_at       bigint NOT NULL,
    expires_at     bigint NOT NULL CHECK (expires_at > begun_at)
);
CREATE INDEX sessions_by_member ON sessions (principal_id);
CREATE INDEX sessions_by_end ON sessions (expires_at);
SELECT keep_tenants_apart('sessions');

-- Tries to sign in since the last success, by the hash of what was tried or of where it came from:
-- of names that nobody has, too, so that an answer does not tell which names there are.
CREATE TABLE sign_in_tries (
    what     text PRIMARY KEY,
    tries    integer NOT NULL CHECK (tries > 0),
    last_at  bigint NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON accounts, sign_in_tries TO isochrone_app;
GRANT SELECT, INSERT, DELETE ON sessions TO isochrone_app;

CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON accounts FOR EACH ROW
    EXECUTE FUNCTION write_audit('account', 'principal_id', 'org_id', 'login,password');
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON sessions FOR EACH ROW
    EXECUTE FUNCTION write_audit('session', 'principal_id', 'org_id', 'secret_sha256');
