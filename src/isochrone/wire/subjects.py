"""Names on the bus: subjects, buckets, streams and keys. Every process takes them from here.

Bucket `view` goes to all gateways, bucket `site_{site}` to that site's agent and gateways only.
Names of models and sites are free text to people, so keys carry a token derived from them.
"""

from hashlib import sha256

VIEW_BUCKET = "view"
USAGE_STREAM = "USAGE"
USAGE_SUBJECTS = ("usage.*", "evidence.*")
BOOK_CONSUMER = "book"
DIGESTS = "digest.*"
HEALTH = "health.*"
LIMITS = "limits.*"


def token(name: str) -> str:
    """16 hex digits that stand for `name` where a key may hold only plain characters."""
    return sha256(name.encode()).hexdigest()[:16]


def site_bucket(site: str) -> str:
    """The bucket that only this site's agent and gateways may read. Site names are [a-z0-9-]+."""
    return f"site_{site}"


def digest_subject(site: str) -> str:
    return f"digest.{site}"


def health_subject(site: str) -> str:
    return f"health.{site}"


def queued_subject(site: str) -> str:
    return f"queued.{site}"


def limits_subject(site: str) -> str:
    return f"limits.{site}"


def usage_subject(site: str) -> str:
    return f"usage.{site}"


def evidence_subject(site: str) -> str:
    return f"evidence.{site}"


def site_key(site: str) -> str:
    return f"site.{site}"


def links_key(site: str) -> str:
    return f"links.{site}"


def model_key(model: str) -> str:
    return f"model.{token(model)}"


def deployment_key(site: str, model: str) -> str:
    return f"deployment.{site}.{token(model)}"


def policy_key(policy_id: str) -> str:
    return f"policy.{policy_id}"


def keys_key(shard: str) -> str:
    return f"keys.{shard}"


def entitlement_key(entitlement_id: str) -> str:
    return f"entitlement.{entitlement_id}"


def limits_key(org_id: str) -> str:
    return f"limits.{org_id}"


VOTERS_KEY = "voters"
DESIRED_KEY = "desired"


def replica_key(replica_id: str) -> str:
    return f"replica.{token(replica_id)}"
