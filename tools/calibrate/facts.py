"""What chips and models are by their makers' statements: the facts that measurements are fitted to.

Chips: memory in GB, its speed in GB/s, and the dense peak in TFLOP/s by precision, from vendors'
data sheets. Models: their published configurations. `attention_mflop` is the work of one token for
each token before it (4 x heads x head size x layers; a layer that sees a window only is left out),
which adds up to the quadratic part of reading a prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "fp8", "fp4"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8", "fp4")

# Bytes of a parameter: 4-bit formats hold a scale of one byte for each 16 values. An engine that
# computes in 8 or 4 bits keeps its KV cache in 8.
WEIGHT_BYTES: Mapping[Precision, float] = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}
KV_BYTES: Mapping[Precision, float] = {"bf16": 2.0, "fp8": 1.0, "fp4": 1.0}
MEMORY_USED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A precision without an entry runs at the peak of the next wider one."""

    memory_gb: float
    memory_gb_s: float
    tflop_s: Mapping[Precision, float]

    def peak(self, precision: Precision) -> float:
        """TFLOP/s, dense."""
        wider = PRECISIONS[: PRECISIONS.index(precision) + 1]
        return next(self.tflop_s[each] for each in reversed(wider) if each in self.tflop_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """`billions` of parameters, of which a token goes through `active`; `kv_values` held for each
    token of context; `stored`: its weights' precision where an engine keeps it whatever it computes
    in."""

    billions: float
    active: float
    kv_values: int
    attention_mflop: float
    stored: Precision | None = None


def _dense(billions: float, kv_values: int, attention_mflop: float) -> Model:
    return Model(
        billions=billions, active=billions, kv_values=kv_values, attention_mflop=attention_mflop
    )


def _chip(
    memory_gb: float, memory_gb_s: float, bf16: float, fp8: float = 0.0, fp4: float = 0.0
) -> Chip:
    peaks: dict[Precision, float] = {"bf16": bf16}
    if fp8:
        peaks["fp8"] = fp8
    if fp4:
        peaks["fp4"] = fp4
    return Chip(memory_gb=memory_gb, memory_gb_s=memory_gb_s, tflop_s=peaks)


MODELS: Mapping[str, Model] = {
    "llama2-7b": _dense(6.74, 262_144, 0.524), "llama3-8b": _dense(8.03, 65_536, 0.524),
    "mistral-7b": _dense(7.24, 65_536, 0.524), "qwen2-7b": _dense(7.62, 28_672, 0.401),
    "llama3-70b": _dense(70.6, 163_840, 2.62), "llama2-70b": _dense(69.0, 163_840, 2.62),
    "qwen2-72b": _dense(72.7, 163_840, 2.62), "bloom-176b": _dense(176.2, 2_007_040, 4.01),
    "llama3.2-3b": _dense(3.21, 57_344, 0.344), "llama3.1-405b": _dense(405.9, 258_048, 8.26),
    "mixtral-8x7b": Model(billions=46.7, active=12.9, kv_values=65_536, attention_mflop=0.524),
    # Its cache holds a compressed vector of 576 values a layer.
    "deepseek-r1": Model(billions=671.0, active=37.0, kv_values=35_136, attention_mflop=5.0),
    # Every other layer sees the last 128 tokens only.
    "gpt-oss-120b": Model(
        billions=116.8, active=5.1, kv_values=18_432, attention_mflop=0.295, stored="fp4"
    ),
    "gpt-oss-20b": Model(
        billions=20.9, active=3.6, kv_values=12_288, attention_mflop=0.197, stored="fp4"
    ),
    "llama4-maverick": Model(billions=400.0, active=17.0, kv_values=98_304, attention_mflop=0.98),
    "qwen3-235b-a22b": Model(billions=235.0, active=22.0, kv_values=96_256, attention_mflop=3.08),
    "qwen3-30b-a3b": Model(billions=30.5, active=3.3, kv_values=49_152, attention_mflop=0.786),
}
CHIPS: Mapping[str, Chip] = {
    "A100-SXM4-40GB": _chip(40, 1555, 312), "A100-SXM4-80GB": _chip(80, 2039, 312),
    "H100-SXM5-80GB": _chip(80, 3350, 989, 1979), "H200-SXM-141GB": _chip(141, 4800, 989, 1979),
    "B200-SXM-180GB": _chip(180, 7700, 2250, 4500, 9000),
    "MI300X-192GB": _chip(192, 5300, 1307, 2615), "L40S": _chip(48, 864, 362, 733),
    "RTX-PRO-6000-SE-96GB": _chip(96, 1597, 503, 1007, 2015),
    "H200-NVL-141GB": _chip(141, 4800, 835, 1671),
    "GB200-186GB": _chip(186, 8000, 2500, 5000, 10000),
    "GB300-288GB": _chip(288, 8000, 2500, 5000, 15000),
    "MI325X-256GB": _chip(256, 6000, 1307, 2615),
    "MI355X-288GB": _chip(288, 8000, 2516, 5033, 10066),
}


def weight_gb(model: str, precision: Precision) -> float:
    """Of all its parameters."""
    facts = MODELS[model]
    return WEIGHT_BYTES[facts.stored or precision] * facts.billions


def kv_bytes(model: str, precision: Precision) -> float:
    """Of KV cache a token of context."""
    return KV_BYTES[precision] * MODELS[model].kv_values


def kv_tokens(hardware: str, model: str, gpus: int, precision: Precision = "bf16") -> int:
    """Tokens of context that fit beside the weights; 0 where not even those fit."""
    free_gb = CHIPS[hardware].memory_gb * gpus * MEMORY_USED - weight_gb(model, precision)
    return max(int(free_gb * 1e9 / kv_bytes(model, precision)), 0)
