"""Makes the tokenizer and the tokens to train on, all from generated documents."""

import multiprocessing
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tools.model.corpus import text
from tools.model.corpus.documents import document

TOKENIZER_DOCUMENTS = 12_000
PARTS = 16


def make_tokenizer(path: Path, vocab: int, *, seed: int = 1) -> None:
    """Train a byte-level BPE on generated documents and save it."""
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [text.END_OF_TEXT, text.START, text.END]

    def plain(piece: str) -> str:
        for mark in (text.START, text.END, text.END_OF_TEXT):
            piece = piece.replace(mark, "\n")
        return piece

    pieces = (piece for _ in range(TOKENIZER_DOCUMENTS) for piece, _ in document(rng))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False, special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((plain(piece) for piece in pieces), trainer)
    tokenizer.save(str(path))


def _encode(part: tuple[str, int, int]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Tokens of one part and whether each is learned from; runs in a process of its own."""
    path, seed, count = part
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, rng = Tokenizer.from_file(path), Random(seed)
    ids: list[int] = []
    learned: list[bool] = []
    while len(ids) < count:
        pieces = document(rng)
        encoded = tokenizer.encode_batch([piece for piece, _ in pieces])
        for each, (_, learn) in zip(encoded, pieces, strict=True):
            ids += each.ids
            learned += [learn] * len(each.ids)
    return np.array(ids[:count], np.uint16), np.array(learned[:count], np.bool_)


class Tokens:
    """A long run of tokens to draw batches from."""

    def __init__(self, tokenizer: Path, count: int, seed: int, *, processes: int = 2) -> None:
        parts = [(str(tokenizer), seed + part, count // PARTS) for part in range(PARTS)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            encoded = pool.map(_encode, parts)
        self.ids = np.concatenate([ids for ids, _ in encoded])
        self.learned = np.concatenate([learned for _, learned in encoded])

    def batch(self, rows: int, length: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """(inputs, targets to learn, their places among the flattened inputs)."""
        starts = rng.integers(0, len(self.ids) - length - 1, rows)
        inputs = np.stack([self.ids[i : i + length] for i in starts]).astype(np.int64)
        targets = np.stack([self.ids[i + 1 : i + length + 1] for i in starts]).astype(np.int64)
        learned = np.stack([self.learned[i + 1 : i + length + 1] for i in starts])
        places = torch.from_numpy(learned).flatten().nonzero().squeeze(1)
        return torch.from_numpy(inputs), torch.from_numpy(targets).flatten()[places], places
