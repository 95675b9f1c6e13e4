"""The process of one llama.cpp replica; run as a script, imports nothing of the project.

Reads its settings as one JSON line from standard input (so that the engine's key is in no argument
list), serves on a free port of 127.0.0.1, writes {"url": ...} as one line to standard output once
it listens, and serves until it is killed. Whatever the engine prints goes to standard error.

SIGTERM keeps its default action: ending the process is the safe way to end the server, whose own
destructor can hang when it is called right after the start.
"""

import json
import os
import signal
import sys
from typing import Any

# A connection holds one of the engine's HTTP threads while it is kept, so there must be more of
# them than streams, waiting requests and the agent's own questions together.
HTTP_THREADS_BESIDE_SLOTS = 124
PREFILL_BATCH = 512
RAM_CACHE_MIB = 256
METADATA_BYTES = 1 << 20  # a GGUF's own keys come first, the tokenizer's lists after them
ERRORS_ONLY = 1


def states_pooling(path: str) -> bool:
    """Whether the model's file says how its token vectors become one vector a text."""
    with open(path, "rb") as file:
        return b".pooling_type" in file.read(METADATA_BYTES)


def parameters(settings: dict[str, Any]) -> Any:  # xllamacpp has no types
    """llama.cpp's parameters for these settings."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["alias"]}
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context_tokens"]  # divided over the slots
    params.n_batch = PREFILL_BATCH
    params.fit_params = False
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    # Tenants are kept apart by slots: what a slot holds is used where the request says so. The
    # cache in memory beside the slots belongs to nobody, and gives to all.
    params.cache_ram_mib = RAM_CACHE_MIB if settings["shares_cache"] else 0
    params.cache_prompt = settings["shares_cache"]
    params.embedding = settings["embeddings"]
    if settings["embeddings"]:
        # A text is embedded in one piece, so it must fit into one batch.
        params.n_batch = params.n_ubatch = max(PREFILL_BATCH, settings["context_tokens"])
        if not states_pooling(settings["model"]):
            # A chat model's file says nothing, and one vector a text is what clients expect.
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_threads_http = settings["slots"] + HTTP_THREADS_BESIDE_SLOTS
    params.api_keys = [settings["key"]]
    params.cors_origins = ""
    params.ui = False
    params.offline = True
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.verbosity = ERRORS_ONLY  # louder levels may print prompts
    return params


def main() -> None:
    """Serve until killed; exit code 1 with the reason on standard error when it cannot start."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    import xllamacpp

    try:
        server = xllamacpp.Server(parameters(settings))
    except (RuntimeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)  # unloading a half-made server may hang
    with answer:
        answer.write(json.dumps({"url": server.listening_address}) + "\n")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
