"""Measures Vidur beside the fast twin on the same requests, one cluster; appends JSON lines.

Run from the project's folder: python -m benchmarks.twin.vidur --vidur DIR --python VENV/bin/python
DIR: a copy of microsoft/vidur; VENV: an environment with what its requirements.txt names.
"""

import argparse
import csv
import json
import os
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from benchmarks.gateway.machine import ROOT, commit, facts

from isochrone.adapters.large_pages import from_the_start
from isochrone.wiring.compiled import begin_compiled, compiled_files

HERE = Path(__file__).resolve().parent
MODEL = "meta-llama/Llama-2-7b-hf"
MOST_TOKENS = 4096  # of a prompt and its answer, as of the model
RATE_S = 2.5  # requests, for each replica
FOREST = ("250", "16", "2")  # one shape; the search for the best costs time and no accuracy here


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """CPU of one core for a run, start and end of the process not counted. `tokens`: answered."""

    cpu_s: float
    requests: int
    iterations: int | None
    tokens: int
    simulated_s: float
    ttft_ms_p50: float
    ttft_ms_p99: float
    whole_ms_mean: float

    def told(self) -> dict[str, Any]:
        """With rates; a run without iterations has none."""
        found = {name: _rounded(value) for name, value in asdict(self).items()}
        found["requests_s"] = round(self.requests / self.cpu_s, 1)
        found["us_per_request"] = round(1e6 * self.cpu_s / self.requests, 1)
        if self.iterations:
            found["us_per_iteration"] = round(1e6 * self.cpu_s / self.iterations, 1)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vidur", type=Path, required=True, help="a copy of microsoft/vidur")
    parser.add_argument("--python", type=Path, required=True, help="of Vidur's environment")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--requests", type=int, default=2000, help="for each run")
    parser.add_argument("--keep", type=Path, help="folder for what Vidur trains, to train once")
    parser.add_argument("--dry", action="store_true", help="append nothing")
    asked = parser.parse_args()
    for needed in (asked.vidur / "vidur" / "main.py", profile(asked.vidur, "mlp"), asked.python):
        if not needed.exists():
            raise SystemExit(
                f"{needed} is not there: --vidur names a copy of microsoft/vidur with its folder"
                " data, --python the interpreter of an environment with its requirements"
            )
    form = "compiled" if compiled_files() else "interpreted"
    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"), **commit(ROOT), "form": form,
        "machine": facts(), "beside": "vidur", "vidur_commit": _commit(asked.vidur),
        "attention": "its own" if profile(asked.vidur, "attention").exists() else "stand-in",
    }
    with TemporaryDirectory() as folder:
        kept = Path(folder) if asked.keep is None else asked.keep.resolve()
        for replicas in asked.replicas:
            found = one(asked.vidur.resolve(), asked.python.absolute(), kept, replicas,
                        asked.requests, form)
            result[f"replicas_{replicas}"] = found
            for name, told in found.items():
                shown = (f"{key} {value}" for key, value in told.items())
                print(replicas, "replicas", name, *shown)
    if not asked.dry:
        with (HERE / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


def _commit(vidur: Path) -> object:
    """Unknown for a copy without its history; what is around the folder does not count."""
    return commit(vidur)["commit"] if (vidur / ".git").exists() else "unknown"


def profile(vidur: Path, part: str) -> Path:
    return vidur / "data" / "profiling" / "compute" / "a100" / MODEL / f"{part}.csv"


def one(
    vidur: Path, python: Path, kept: Path, replicas: int, requests: int, form: str
) -> dict[str, dict[str, Any]]:
    """Vidur as it comes, Vidur without the metrics that it keeps by default, and the twin."""
    kept.mkdir(parents=True, exist_ok=True)
    arguments = [*_arguments(vidur, kept, replicas), "--synthetic_request_generator_config_"
                 "num_requests"]
    _vidur(vidur, python, kept, [*arguments, "10"])  # trains, or finds what was trained
    lean, _ = _vidur(vidur, python, kept, [
        *arguments, str(requests), "--no-metrics_config_write_metrics",
        "--no-metrics_config_enable_chrome_trace",
    ])
    as_it_comes, played = _vidur(vidur, python, kept, [*arguments, str(requests)])
    os.environ.update(from_the_start(os.environ))
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, begin_compiled, (os.getpid(),)) if form == "compiled"
        else ProcessPoolExecutor(1, context)
    ) as pool:
        same = pool.submit(twin, replicas, played, 1).result()
        longer = pool.submit(twin, replicas, played, max(1, 60_000 // requests)).result()
    return {
        "vidur": as_it_comes.told(), "vidur_lean": lean.told(), "twin": same.told(),
        "twin_longer": longer.told(),
    }


def _arguments(vidur: Path, kept: Path, replicas: int) -> list[str]:
    attention = profile(vidur, "attention")
    if not attention.exists():
        attention = kept / "attention.csv"
        stand_in(attention)
    forest = "random_forrest_execution_time_predictor_config"
    estimators, depth, split = FOREST
    given: dict[str, str] = {
        "replica_config_device": "a100",
        "replica_config_model_name": MODEL,
        "cluster_config_num_replicas": str(replicas),
        "replica_scheduler_config_type": "sarathi",
        "request_generator_config_type": "synthetic",
        "length_generator_config_type": "trace",
        "trace_request_length_generator_config_max_tokens": str(MOST_TOKENS),
        "trace_request_length_generator_config_trace_file":
            str(vidur / "data" / "processed_traces" / "splitwise_conv.csv"),
        "interval_generator_config_type": "poisson",
        "poisson_request_interval_generator_config_qps": str(RATE_S * replicas),
        "metrics_config_cache_dir": str(kept / "cache"),
        "metrics_config_output_dir": str(kept / "output"),
        f"{forest}_attention_input_file": str(attention),
        f"{forest}_num_estimators": estimators,
        f"{forest}_max_depth": depth,
        f"{forest}_min_samples_split": split,
    }
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def stand_in(path: Path) -> None:
    """Times of attention by the bytes and the work of the model, in the format of a profile, where
    a copy lacks the profile itself. They say how long an iteration takes in simulated time, never
    how long it takes to simulate: Vidur looks its predictions up in a table, whatever is in it."""
    kv_bytes, kv_bytes_s, work_s = 16_384, 1.5e12, 1.5e14  # of a token, a layer; A100
    shape = {"n_embd": 4096, "n_q_head": 32, "n_kv_head": 32, "block_size": 16,
             "num_tensor_parallel_workers": 1, "max_model_len": MOST_TOKENS}
    contexts = range(0, MOST_TOKENS + 1, 256)
    rows: list[dict[str, object]] = [
        {**shape, "batch_size": batch, "prefill_chunk_size": 0, "kv_cache_size": context,
         "time_stats.attn_decode.median":
             8e-3 + 1.1e-3 * batch + 1e3 * batch * context * kv_bytes / kv_bytes_s}
        for batch in (1, 2, 4, 8, *range(16, 129, 8)) for context in contexts
    ]
    rows += [
        {**shape, "batch_size": 1, "prefill_chunk_size": chunk, "kv_cache_size": context,
         "time_stats.attn_prefill.median":
             1e-2 + 1e3 * 4.0 * 4096 * chunk * (context + chunk / 2) / work_s}
        for chunk in (32, 64, *range(128, MOST_TOKENS + 1, 128)) for context in contexts
    ]
    names = [*rows[0], "time_stats.attn_prefill.median"]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _vidur(
    vidur: Path, python: Path, kept: Path, arguments: Sequence[str]
) -> tuple[Spent, dict[str, list[float]]]:
    into = kept / "found.json"
    done = subprocess.run(
        [str(python), str(HERE / "vidur_side.py"), str(into), *arguments], cwd=vidur, text=True,
        capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(vidur), "WANDB_MODE": "disabled"},
    )
    if done.returncode != 0:
        raise SystemExit(f"Vidur failed:\n{done.stderr[-3000:]}")
    found = json.loads(into.read_text())
    ttft_ms = np.array(found["ttft_ms"])
    return Spent(
        cpu_s=found["spent_s"], requests=len(ttft_ms), iterations=found["iterations"],
        tokens=sum(found["output_tokens"]), simulated_s=found["simulated_s"],
        ttft_ms_p50=float(np.quantile(ttft_ms, 0.5)), ttft_ms_p99=float(np.quantile(ttft_ms, 0.99)),
        whole_ms_mean=float(np.mean(found["whole_ms"])),
    ), found


def twin(replicas: int, played: dict[str, list[float]], times: int) -> Spent:
    """The same requests at one site with as many replicas, `times` one after the other."""
    from benchmarks.twin.one_site import one_site, repeated

    from isochrone.twin.fast.arrivals import Arrivals
    from isochrone.twin.fast.ours import Ours
    from isochrone.twin.fast.plan import Plan
    from isochrone.twin.fast.simulation import run

    chunks: list[Arrivals] = list(repeated(played, times))
    began_s = time.process_time()
    found = run(one_site(replicas), iter(chunks), Ours(), Plan())
    spent_s = time.process_time() - began_s
    assert found.ttft_ms_p50 is not None
    assert found.ttft_ms_p99 is not None
    assert found.total_ms_mean is not None
    return Spent(
        cpu_s=spent_s, requests=found.requests, iterations=None, tokens=found.output_tokens,
        simulated_s=found.simulated_s, ttft_ms_p50=found.ttft_ms_p50,
        ttft_ms_p99=found.ttft_ms_p99, whole_ms_mean=found.total_ms_mean,
    )


def _rounded(value: float | None) -> float | None:
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
