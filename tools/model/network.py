"""The network of the tiny model: a llama of 3.5 M parameters in plain torch."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

Tensor = Any  # torch has no types here


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the network; `ctx` is the longest text in tokens."""

    vocab: int = 2048
    d: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    ff: int = 704
    ctx: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.d // self.heads


class Norm(nn.Module):  # type: ignore[misc]  # torch has no types here
    """Root-mean-square norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(shape.d))
        self.eps = shape.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.w.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions with split halves, as transformers has them (faster here); the GGUF export
    re-orders queries and keys, because llama.cpp wants interleaved pairs."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):  # type: ignore[misc]
    """Attention with shared key heads, then a gated feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.n1, self.n2 = Norm(shape), Norm(shape)
        self.q = nn.Linear(shape.d, queries, bias=False)
        self.k = nn.Linear(shape.d, keys, bias=False)
        self.v = nn.Linear(shape.d, keys, bias=False)
        self.o = nn.Linear(queries, shape.d, bias=False)
        self.gate = nn.Linear(shape.d, shape.ff, bias=False)
        self.up = nn.Linear(shape.d, shape.ff, bias=False)
        self.down = nn.Linear(shape.ff, shape.d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        shape, y = self.shape, self.n1(x)

        def heads(projected: Tensor, count: int) -> Tensor:
            return projected.view(rows, length, count, shape.head_size).transpose(1, 2)

        q = rotate(heads(self.q(y), shape.heads), cos, sin)
        k = rotate(heads(self.k(y), shape.kv_heads), cos, sin)
        v = heads(self.v(y), shape.kv_heads)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(rows, length, -1))
        y = self.n2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Network(nn.Module):  # type: ignore[misc]
    """Embedding, blocks, norm; the output shares the embedding's weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.emb = nn.Embedding(shape.vocab, shape.d)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape)
        for name, weights in self.named_parameters():
            if weights.dim() == 2:
                ends_a_branch = name.endswith(("o.weight", "down.weight"))
                scale = math.sqrt(2 * shape.layers) if ends_a_branch else 1
                nn.init.normal_(weights, std=0.02 / scale)
        places = torch.arange(0, shape.head_size, 2).float() / shape.head_size
        angles = torch.arange(shape.ctx).float()[:, None] * (shape.theta**-places)[None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor, rows: Tensor = None) -> Tensor:
        """Logits of all positions, or of the flattened positions `rows` only."""
        kind = self.emb.weight.dtype
        if torch.is_autocast_enabled("cpu"):
            kind = torch.get_autocast_dtype("cpu")
        length = ids.shape[1]
        cos, sin = self.cos[:length].to(kind), self.sin[:length].to(kind)
        x = self.emb(ids).to(kind)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = self.norm(x).flatten(0, 1)
        if rows is not None:
            x = x[rows]
        return F.linear(x, self.emb.weight.to(x.dtype))
