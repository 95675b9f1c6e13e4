"""Runs inside Vidur's own environment: one simulation, and what it cost. Called by vidur.py.

python vidur_side.py FOUND.json ARGUMENT..., with Vidur's folder on the path; the arguments are
those of `python -m vidur.main`. Imports nothing of this project. Only the loop over events is
timed: reading profiles, training predictors and drawing requests come before, plots after it.
"""

import atexit
import importlib
import json
import sys
import time
from pathlib import Path


def main() -> None:
    sys.path.pop(0)  # this folder, whose vidur.py is not meant
    into = Path(sys.argv.pop(1))
    config_class = importlib.import_module("vidur.config").SimulationConfig
    simulator_class = importlib.import_module("vidur.simulator").Simulator
    batch = importlib.import_module("vidur.entities").Batch
    config = config_class.create_from_cli_args()
    importlib.import_module("vidur.utils.random").set_seeds(config.seed)
    simulator = simulator_class(config)
    atexit.unregister(simulator._write_output)
    requests = [event._request for _, event in sorted(simulator._event_queue)]
    began_s = time.process_time()
    simulator.run()
    spent_s = time.process_time() - began_s
    into.write_text(json.dumps({
        "spent_s": spent_s,
        "iterations": batch._id + 1,
        "simulated_s": simulator._time,
        "at_s": [each.arrived_at for each in requests],
        "prompt_tokens": [each.num_prefill_tokens for each in requests],
        "output_tokens": [each.num_decode_tokens for each in requests],
        "ttft_ms": [1e3 * (each.prefill_completed_at - each.arrived_at) for each in requests],
        "whole_ms": [1e3 * (each.completed_at - each.arrived_at) for each in requests],
    }))


if __name__ == "__main__":
    main()
