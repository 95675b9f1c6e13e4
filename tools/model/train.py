"""Trains the bundled tiny model on a CPU and writes it as GGUF and, if asked, for transformers.

    python -m tools.model.train --out OUT --minutes 20          # train, then export
    python -m tools.model.train --out OUT --minutes 0 --random  # random weights, to test the way
    python -m tools.model.train --out OUT --export-only --hf    # export a checkpoint again
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tools.model.data import Tokens, make_tokenizer
from tools.model.export import export_gguf, export_transformers
from tools.model.network import Network, Shape

SHORT_TEXT = 256
CHECK_TEXT = 512
CHECK_EVERY_STEPS = 500
SAY_EVERY_STEPS = 20
WARM_UP_STEPS = 60
MUON_RATE, ADAM_RATE = 0.02, 3e-3


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def optimizers(network: Network) -> list[tuple[Any, float]]:
    """Muon for the inner matrices, AdamW for the rest, each with its full learning rate."""
    inner: list[Any] = []
    rest: list[Any] = []
    for name, weights in network.named_parameters():
        is_inner = weights.dim() == 2 and not name.startswith("emb")
        (inner if is_inner else rest).append(weights)
    muon = torch.optim.Muon(inner, lr=MUON_RATE, weight_decay=0.01, momentum=0.95)
    adam = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, MUON_RATE), (adam, ADAM_RATE)]


class Training:
    """One run within a budget of time. `step_once` does one step; the schedule follows `share`,
    the part of the budget that is used up."""

    def __init__(self, asked: argparse.Namespace, shape: Shape, tokenizer: Path) -> None:
        self.asked, self.shape = asked, shape
        torch.manual_seed(0)
        torch.set_num_threads(asked.threads)
        self.network = Network(shape)
        if asked.resume:
            self.network.load_state_dict(torch.load(asked.resume))
        self.checkpoint = asked.out / "ckpt.pt"
        self.tokens = Tokens(tokenizer, asked.tokens, asked.seed)
        self.held_out = Tokens(tokenizer, 200_000, 9000)
        self.optimizers = optimizers(self.network)
        self.rng = np.random.default_rng(0)
        self.steps = self.seen = 0

    def run(self) -> Network:
        say(f"{len(self.tokens.ids) / 1e6:.1f}M tokens, {self.tokens.learned.mean():.2f} learned")
        if self.asked.compile:
            for block in self.network.blocks:
                block.forward = torch.compile(block.forward, dynamic=False)
        started, budget_s = time.monotonic(), self.asked.minutes * 60
        while (used_s := time.monotonic() - started) < budget_s:
            loss = self.step_once(used_s / budget_s)
            if self.steps % SAY_EVERY_STEPS == 0:
                rate = self.seen / (time.monotonic() - started) / 1e3
                say(f"step {self.steps}  {used_s:.0f} s  loss {loss:.3f}  {rate:.1f}k tokens/s")
            if self.steps % CHECK_EVERY_STEPS == 0:
                say(f"  held-out loss {self.check():.4f}")
                torch.save(self.network.state_dict(), self.checkpoint)
        torch.save(self.network.state_dict(), self.checkpoint)
        say(f"{self.steps} steps, {self.seen / 1e6:.1f}M tokens, held out {self.check():.4f}")
        return self.network

    def step_once(self, share: float) -> float:
        """Most of the time at 256 tokens, then some at the full length. Returns the loss."""
        length, rows = SHORT_TEXT, self.asked.bs
        if share >= self.asked.full_from:
            length, rows = self.shape.ctx, max(1, self.asked.bs * SHORT_TEXT // self.shape.ctx)
        cooling = 1.0 if share < 0.3 else max(0.02, (1 - share) / 0.7)
        scale = min(1.0, self.steps / WARM_UP_STEPS) * cooling * self.asked.lr
        for optimizer, rate in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        inputs, targets, places = self.tokens.batch(rows, length, self.rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(inputs, places)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer, _ in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.seen += inputs.numel()
        return float(loss.item())

    def check(self, *, batches: int = 12) -> float:
        """Mean loss on text that was held out, answers only."""
        rng = np.random.default_rng(7)
        total = count = 0.0
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for _ in range(batches):
                inputs, targets, places = self.held_out.batch(8, CHECK_TEXT, rng)
                logits = self.network(inputs, places).float()
                total += F.cross_entropy(logits, targets, reduction="sum").item()
                count += len(targets)
        return total / count


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--name", default="tiny-fable")
    add("--minutes", type=float, default=18)
    add("--tokens", type=int, default=16_000_000)
    add("--bs", type=int, default=48, help="rows of 256 tokens in a batch")
    add("--lr", type=float, default=1.0, help="factor on both learning rates")
    add("--full-from", type=float, default=0.85, help="share of the time before full length")
    add("--seed", type=int, default=100)
    add("--threads", type=int, default=os.cpu_count())
    add("--resume", type=Path, help="checkpoint to go on from")
    add("--random", action="store_true", help="random weights")
    add("--export-only", action="store_true", help="export OUT/ckpt.pt")
    add("--hf", action="store_true", help="write a folder for transformers, vLLM and SGLang")
    add("--compile", action="store_true", help="compile the blocks; faster after a minute")
    return parser.parse_args()


def main() -> None:
    asked, shape = arguments(), Shape()
    asked.out.mkdir(parents=True, exist_ok=True)
    tokenizer = asked.out / "tokenizer.json"
    if not tokenizer.exists():
        make_tokenizer(tokenizer, shape.vocab)
    if asked.random or asked.export_only:
        network = Network(shape)
        if asked.export_only:
            network.load_state_dict(torch.load(asked.out / "ckpt.pt"))
    else:
        network = Training(asked, shape, tokenizer).run()
    for kind in ("f16", "q8_0"):
        path = asked.out / f"{asked.name}-{kind}.gguf"
        export_gguf(network, shape, tokenizer, path, kind)
        say(f"{path}: {path.stat().st_size} bytes")
    if asked.hf:
        export_transformers(network, shape, tokenizer, asked.out / "hf")


if __name__ == "__main__":
    main()
