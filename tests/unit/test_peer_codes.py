"""Codes of hops: over the same bytes by the same key, however often one has begun with them."""

from hashlib import blake2b

import pytest

from isochrone.wire import peer_codes
from isochrone.wire.peer import HopHead
from isochrone.wire.peer_codes import CODE_BYTES, answer_code, proof, request_code, started

KEY = b"k" * 32
HEAD = HopHead("POST", "/v1/chat/completions", "sydney", "frankfurt", "k-1", "on_demand")


@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 20_000])
def test_a_code_is_that_of_all_its_bytes_each_time(body: bytes) -> None:
    requests, said = started(KEY, HEAD.covered()), "id-1 17p"
    whole = blake2b(
        HEAD.covered() + said.encode() + b"\n" + body, key=KEY, digest_size=CODE_BYTES
    ).hexdigest()
    assert [request_code(requests, said, body) for _ in range(2)] == [whole, whole]
    assert proof(requests, "id-1", 17, body, pushed=True) == f"{said} {whole}"
    assert request_code(requests, "id-1 17", body) != whole


def test_the_code_of_an_answer_covers_its_status_and_what_it_says() -> None:
    answers = started(KEY)
    whole = blake2b(
        b"answer\nid-1\nfrankfurt\n200\n1,2,3,engine r\n", key=KEY, digest_size=CODE_BYTES
    ).hexdigest()
    said = peer_codes.answer(
        answers, "id-1", "frankfurt", 200, tokens="1,2,3,engine", replica="r"
    )
    assert said == f"1,2,3,engine r {whole}"
    assert answer_code(answers, "id-1", "frankfurt", 201, "1,2,3,engine r") != whole
    assert answer_code(started(b"j" * 32), "id-1", "frankfurt", 200, "1,2,3,engine r") != whole
