"""Writes: idempotency keys scoped to the caller, and secrets that are shown once.

A secret is only kept as a hash. So that repeating a write under the same idempotency key can show
the same secret (its reply may have been lost), the secret of such a write is derived from the
caller, key and body under a root that only control knows; other secrets are plain chance.
"""

import hmac
import json
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from fastapi import Header, Request
from pydantic import BaseModel

from isochrone.control.api.auth import Caller
from isochrone.control.api.context import Context
from isochrone.ports.tenants import Once

API_KEY_PREFIX = "iso_"
ADMIN_KEY_PREFIX = "isoadm_"
SITE_TOKEN_PREFIX = "isosite_"
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The path that is written to with its query, and the caller's idempotency key if any."""

    path: str
    key: str | None

    def once(self, caller: Caller, body: BaseModel | None) -> Once | None:
        """Identifies this write of this caller."""
        if self.key is None:
            return None
        asked = {} if body is None else body.model_dump(mode="json")
        text = f"{self.path}\n{json.dumps(asked, sort_keys=True)}"
        return Once(
            caller=caller.id, key=self.key, body_sha256=sha256(text.encode()).hexdigest()
        )


def repeat(
    request: Request,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")
    ] = None,
) -> Repeat:
    """The dependency that reads the Idempotency-Key header."""
    url = request.url
    path = f"{url.path}?{url.query}" if url.query else url.path  # the query says for whom
    return Repeat(path=path, key=idempotency_key)


def new_secret(context: Context, prefix: str, once: Once | None) -> str:
    """`prefix` and 43 characters for 32 bytes."""
    if once is None:
        raw = context.entropy(SECRET_BYTES)
    else:
        asked = "\n".join((prefix, once.caller, once.key, once.body_sha256))
        raw = hmac.digest(context.secret_root, asked.encode(), "sha256")
    return prefix + urlsafe_b64encode(raw).rstrip(b"=").decode()
