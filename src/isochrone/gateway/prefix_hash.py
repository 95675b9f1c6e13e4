"""Hashes of the beginning of a prompt, by which routing finds where it was computed before, and of
the session that a request belongs to.

The JSON of the prompt is cut into blocks, and each block's hash covers all blocks before it: two
requests share their first n hashes when their prompts begin with the same n blocks. Salts (64 bits)
keep tenants apart: what one of them asked can be told from nobody else's hashes.
"""

from bisect import bisect_right
from typing import Final

from xxhash import xxh3_64_intdigest

from isochrone.core.routing.prefix import BLOCK_ENDS, MOST_BYTES
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.request_fields import ABSENT

NO_SESSION: Final = 0

_ASSISTANT: Final = b'"assistant"'  # in a text its quotation marks would be escaped
_ENDS: Final = b"], \t\r\n"
_NEAR_BYTES: Final = 4096  # most first answers begin within these

# Where each block ends, and what of the prompt it is.
_CUTS: Final[list[tuple[int, slice]]] = [
    (end, slice(begin, end)) for begin, end in zip((0, *BLOCK_ENDS), BLOCK_ENDS, strict=False)
]

# What names the session: the same words in another place name another.
_HEADER: Final = b"header\0"
_KEY: Final = b"key\0"


def prompt_blocks(request: InferenceRequest, salt: int) -> list[int]:
    """Chained hashes of the whole blocks of the prompt, from its beginning. Tools, which a model
    reads before it, are in all of them."""
    content = memoryview(request.prompt)
    blocks = []
    block = salt if request.tools is ABSENT else xxh3_64_intdigest(request.tools, salt)
    size = len(content)
    for end, cut in _CUTS:
        if end > size:
            break
        block = xxh3_64_intdigest(content[cut], block)
        blocks.append(block)
    return blocks


def session_of(
    request: InferenceRequest, session_id: bytes, salt: int, blocks: list[int]
) -> int:
    """The session of a request: what its header says, else its `prompt_cache_key`, else the
    conversation that it goes on with; `NO_SESSION` where there is none. `blocks` are the prompt's.
    """
    if session_id:
        return xxh3_64_intdigest(_HEADER + session_id, salt)
    if request.cache_key:
        return xxh3_64_intdigest(_KEY + request.cache_key, salt)
    if request.endpoint == "completions" or not blocks:
        return NO_SESSION
    content = memoryview(request.prompt)
    prompt = bytes(content[:_NEAR_BYTES])
    answer = prompt.find(_ASSISTANT)
    if answer < 0 and len(content) > _NEAR_BYTES:
        prompt = bytes(content[:MOST_BYTES])
        answer = prompt.find(_ASSISTANT, _NEAR_BYTES - len(_ASSISTANT))
    end = _end_of_beginning(prompt, answer)
    whole, begin = bisect_right(BLOCK_ENDS, end), 0
    if whole:
        salt ^= blocks[whole - 1]
        begin = BLOCK_ENDS[whole - 1]
    return xxh3_64_intdigest(prompt[begin:end], salt)


def _end_of_beginning(prompt: bytes, answer: int) -> int:
    """Where the messages before the first answer of the model end, which all turns of a
    conversation have in common, as the client wrote them. At most `MOST_BYTES` of it are looked at,
    and no more than that where the answer stands in them: at `answer`, negative where it does not.
    """
    end = len(prompt) if answer < 0 else max(prompt.rfind(b"{", 0, answer), 0)
    while end > 0 and prompt[end - 1] in _ENDS:
        end -= 1
    return end
