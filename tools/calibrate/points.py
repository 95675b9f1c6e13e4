"""Reads the public measurements of engines into one form."""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

What = Literal["prefill", "decode", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Whose measurements these are."""

    table: str
    hardware: str
    engine: str
    model: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """`seconds` to read, to write or to do both, for `batch` requests at once."""

    of: Engine
    what: What
    prompt: int
    batch: int
    output: int
    seconds: float


HARDWARE = {
    "a100-80gb": "A100-SXM4-80GB", "h100-80gb": "H100-SXM5-80GB",
    "Nvidia A100 GPU": "A100-SXM4-40GB", "Nvidia H100 GPU": "H100-SXM5-80GB",
    "AMD MI300X GPU": "MI300X-192GB",
}
MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama2-7b", "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b", "Qwen/Qwen2-7B": "qwen2-7b",
    "meta-llama/Meta-Llama-3-70B": "llama3-70b", "meta-llama/Llama-2-70b-hf": "llama2-70b",
    "Qwen/Qwen2-72B": "qwen2-72b", "Llama-3.1-8B": "llama3-8b", "Llama-3.2-3B": "llama3.2-3b",
}
ENGINES = {"vLLM": "vllm", "TensorRT-LLM": "tensorrt-llm"}


def read_points(folder: Path) -> Iterator[Point]:
    """All points of the three tables that are used."""
    yield from _phases(
        folder / "splitwise_perf_llama2-70b_bloom_a100_h100.csv", "splitwise", 1e-3, per_token=True
    )
    yield from _phases(folder / "sageserve_perf_llama3_a100.csv", "sageserve", 1.0, per_token=False)
    yield from _whole(folder / "llm_inference_bench_all.csv.gz")


def _phases(path: Path, table: str, unit_s: float, *, per_token: bool) -> Iterator[Point]:
    """Reading and writing measured apart. `per_token`: the time of a token, else of all."""
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            if row["hardware"] not in HARDWARE:
                continue  # the power-capped H100
            of = Engine(
                table=table, hardware=HARDWARE[row["hardware"]], engine="vllm",
                model=MODELS.get(row["model"], row["model"]), gpus=int(row["tensor_parallel"]),
            )
            prompt, batch = int(row["prompt_size"]), int(row["batch_size"])
            output = int(row["token_size"])
            wrote_s = float(row["token_time"]) * unit_s * (output if per_token else 1)
            for what, seconds in (
                ("prefill", float(row["prompt_time"]) * unit_s), ("decode", wrote_s)
            ):
                kind: What = "prefill" if what == "prefill" else "decode"
                yield Point(
                    of=of, what=kind, prompt=prompt, batch=batch, output=output, seconds=seconds
                )


def _whole(path: Path) -> Iterator[Point]:
    """Prompt and answer of one length, both in one time."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            known = row["Hardware"] in HARDWARE and row["Framework"] in ENGINES
            if not known or row["Model"] not in MODELS:
                continue
            length = int(row["Input Output Length"])
            yield Point(
                of=Engine(
                    table="llm-inference-bench", hardware=HARDWARE[row["Hardware"]],
                    engine=ENGINES[row["Framework"]], model=MODELS[row["Model"]],
                    gpus=int(row["Num of Hardware"]),
                ),
                what="whole", prompt=length, batch=int(row["Batch Size"]), output=length,
                seconds=float(row["Latency"]),
            )
