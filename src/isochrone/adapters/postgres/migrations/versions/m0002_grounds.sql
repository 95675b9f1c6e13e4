-- What decisions of one site's ingress share until its view changes; ingress_site and the ground's
-- id in usage.decision lead here. The key has the site, so that none can speak for another.
CREATE TABLE grounds (
    site     text NOT NULL,
    id       text NOT NULL,
    ground   jsonb NOT NULL,
    kept_at  bigint NOT NULL,
    PRIMARY KEY (site, id)
);
GRANT SELECT, INSERT ON grounds TO isochrone_app;
