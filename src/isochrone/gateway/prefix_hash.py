"""Hashes of the beginning of a prompt, by which routing finds where it was computed before, and of
the session that a request belongs to.

The JSON of the prompt is cut into blocks, and each block's hash covers all blocks before it: two
requests share their first n hashes when their prompts begin with the same n blocks. Salts (64 bits)
keep tenants apart: what one of them asked can be told from nobody else's hashes.
"""

from typing import Final

from xxhash import xxh3_64_intdigest

from isochrone.core.routing.prefix import BLOCK_BYTES
from isochrone.gateway.request import InferenceRequest

MOST_BLOCKS: Final = 256  # requests that agree so far are taken for one prefix
MOST_CONVERSATION_BYTES: Final = 65_536  # conversations that begin alike so far are taken for one
NO_SESSION: Final = 0

_ASSISTANT: Final = b'"assistant"'  # in a text its quotation marks would be escaped
_ENDS: Final = b"], \t\r\n"

# What names the session: the same words in another place name another.
_HEADER: Final = b"header\0"
_KEY: Final = b"key\0"
_CONVERSATION: Final = b"conversation\0"


def prompt_blocks(request: InferenceRequest, salt: int) -> list[int]:
    """Chained hashes of the whole blocks of the prompt, from its beginning."""
    content = memoryview(request.prompt)
    blocks = []
    block = salt
    end = min(len(content) // BLOCK_BYTES, MOST_BLOCKS) * BLOCK_BYTES
    for begin in range(0, end, BLOCK_BYTES):
        block = xxh3_64_intdigest(content[begin : begin + BLOCK_BYTES], block)
        blocks.append(block)
    return blocks


def session_of(request: InferenceRequest, session_id: bytes, salt: int) -> int:
    """The session of a request: what its header says, else its `prompt_cache_key`, else the
    conversation that it goes on with; `NO_SESSION` where there is none."""
    if session_id:
        return xxh3_64_intdigest(_HEADER + session_id, salt)
    if request.cache_key:
        return xxh3_64_intdigest(_KEY + request.cache_key, salt)
    if request.endpoint == "completions" or request.prompt_bytes < BLOCK_BYTES:
        return NO_SESSION
    return xxh3_64_intdigest(_CONVERSATION + _beginning(bytes(request.prompt)), salt)


def _beginning(prompt: bytes) -> bytes:
    """The messages before the first answer of the model, which all turns of a conversation have in
    common, as the client wrote them."""
    at = prompt.find(_ASSISTANT, 0, MOST_CONVERSATION_BYTES)
    if at >= 0:
        at = max(prompt.rfind(b"{", 0, at), 0)
    else:
        at = min(len(prompt), MOST_CONVERSATION_BYTES)
    return prompt[:at].rstrip(_ENDS)
