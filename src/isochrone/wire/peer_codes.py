"""The message codes of a peer hop: keyed BLAKE2b, of what a request or an answer says.

What many messages have in common, the key and the most of a head, is taken in once (`started`);
the code of each goes on from a copy of that. Of every request between two gateways.
"""

from hashlib import blake2b
from hmac import compare_digest
from math import inf
from typing import Final

CODE_BYTES: Final = 24
PUSHED: Final = "p"                    # behind the instant in `HOP`: past the nearest site
UNPAID: Final = "u"                    # before both: its ingress cannot pay for `reserved`
PATIENCE: Final = "w"                  # behind that: the whole ms that it may wait there


def started(key: bytes, covered: bytes = b"") -> blake2b:
    """Where the codes of messages begin that two sites with this key send one another: requests
    whose heads say what is `covered`, or answers, of which nothing is. Never changed by them."""
    code = blake2b(key=key, digest_size=CODE_BYTES)
    code.update(covered)
    return code


def proof(
    requests: blake2b, request_id: str, sent_at: int, body: bytes, *, pushed: bool = False,
    patience_ms: float = inf, unpaid: bool = False,
) -> str:
    """The value of a request's `HOP`; `requests` have begun with what its HopHead says. `pushed`:
    another site is nearer, and has a long queue. `patience_ms`: where it would wait for longer, it
    wants to be refused at once. `unpaid`: it is of its class only if the serving site pays."""
    said = f"{request_id} {sent_at}"
    if unpaid:
        said += UNPAID
    if pushed:
        said += PUSHED
    if patience_ms < inf:
        said += f"{PATIENCE}{int(patience_ms)}"
    return f"{said} {request_code(requests, said, body)}"


def request_code(requests: blake2b, said: str, body: bytes) -> str:
    """Message code of a peer request, hex; `said` is id and instant as they stand before it."""
    code = requests.copy()
    code.update(b"%b\n%b" % (said.encode(), body))
    return code.hexdigest()


def answer(
    answers: blake2b, request_id: str, serving: str, status: int, *, tokens: str, replica: str,
    class_: str = "",
) -> str:
    """The value of an answer's `HOP`: token counts and replica that served it, or `NOTHING`; the
    class in which it was, where the request was `UNPAID`; and the code."""
    said = f"{tokens} {replica} {class_}" if class_ else f"{tokens} {replica}"
    return f"{said} {answer_code(answers, request_id, serving, status, said)}"


def answer_code(answers: blake2b, request_id: str, serving: str, status: int, said: str) -> str:
    """Message code of the answer's head, hex; `said` is what stands before it."""
    code = answers.copy()
    code.update(f"answer\n{request_id}\n{serving}\n{status}\n{said}\n".encode())
    return code.hexdigest()


def same_code(one: str, other: str) -> bool:
    """Compare in constant time; False for what cannot be a code."""
    return one.isascii() and compare_digest(one, other)
