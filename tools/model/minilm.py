"""Converts a sentence-transformers BERT folder with mean pooling to GGUF, for embeddings.

    python -m tools.model.minilm FOLDER OUT.gguf [--kind f16|q8_0]

FOLDER holds config.json, vocab.txt and model.safetensors. Texts are limited to 512 tokens.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILE_TYPES = {"f16": 1, "q8_0": 7}
FULL_PRECISION = ("position_embd.weight", "token_types.weight")
LAYER_PARTS = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k",
    "attention.self.value": "attn_v", "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm", "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}


def convert(folder: Path, out: Path, kind: str) -> None:
    """Write one GGUF of the `bert` architecture."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    writer = gguf.GGUFWriter(str(out), "bert")
    _write_shape(writer, config, kind)
    _write_vocabulary(writer, lines[: config["vocab_size"]])
    stored = load_file(str(folder / "model.safetensors"))
    for name, source in _sources(config["num_hidden_layers"]).items():
        values = stored[source] if source in stored else stored[f"bert.{source}"]
        _put(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, config: Mapping[str, Any], kind: str) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_token_type_count(config["type_vocab_size"])


def _write_vocabulary(writer: Any, vocab: Sequence[str]) -> None:
    """Word pieces in the form that llama.cpp wants: a mark at word starts, none inside words."""
    tokens, types = [], []
    for piece in vocab:
        if piece in SPECIAL or (piece.startswith("[unused") and piece.endswith("]")):
            tokens.append(piece)
            control = piece in SPECIAL
            types.append(gguf.TokenType.CONTROL if control else gguf.TokenType.UNUSED)
        else:
            tokens.append(piece[2:] if piece.startswith("##") else "\u2581" + piece)
            types.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    place = {piece: number for number, piece in enumerate(vocab)}
    writer.add_bos_token_id(place["[CLS]"])
    writer.add_eos_token_id(place["[SEP]"])
    writer.add_sep_token_id(place["[SEP]"])
    writer.add_unk_token_id(place["[UNK]"])
    writer.add_pad_token_id(place["[PAD]"])
    writer.add_mask_token_id(place["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _sources(layers: int) -> dict[str, str]:
    """GGUF tensor names with the names that the weights have in the folder."""
    names = {
        "token_embd.weight": "embeddings.word_embeddings.weight",
        "position_embd.weight": "embeddings.position_embeddings.weight",
        "token_types.weight": "embeddings.token_type_embeddings.weight",
    }
    for part in ("weight", "bias"):
        names[f"token_embd_norm.{part}"] = f"embeddings.LayerNorm.{part}"
        for layer in range(layers):
            for source, name in LAYER_PARTS.items():
                names[f"blk.{layer}.{name}.{part}"] = f"encoder.layer.{layer}.{source}.{part}"
    return names


def _put(writer: Any, name: str, stored: Any, kind: str) -> None:
    values = np.ascontiguousarray(stored, np.float32)
    if values.ndim == 1 or name in FULL_PRECISION:
        writer.add_tensor(name, values)
    elif kind == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        quantized = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)


def main() -> None:
    parser = argparse.ArgumentParser(description="BERT folder to GGUF")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=sorted(FILE_TYPES), default="f16")
    asked = parser.parse_args()
    convert(asked.folder, asked.out, asked.kind)


if __name__ == "__main__":
    main()
