"""Writes a trained network as GGUF for llama.cpp, and as a folder for transformers and vLLM."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tools.model.corpus import text
from tools.model.network import Network, Shape

FILE_TYPES = {"f16": 1, "q8_0": 7}


def export_gguf(network: Network, shape: Shape, tokenizer: Path, out: Path, kind: str) -> None:
    """One GGUF file; `kind` is f16 or q8_0. Norms stay in f32."""
    writer = gguf.GGUFWriter(str(out), "llama")
    _write_shape(writer, shape, kind)
    _write_tokenizer(writer, shape, json.loads(tokenizer.read_text(encoding="utf-8")))
    _put(writer, "token_embd.weight", network.emb.weight, kind)
    _put(writer, "output_norm.weight", network.norm.w, kind)
    for place, block in enumerate(network.blocks):
        weights = {
            "attn_norm": block.n1.w,
            "attn_q": interleaved(block.q.weight, shape.heads, shape),
            "attn_k": interleaved(block.k.weight, shape.kv_heads, shape),
            "attn_v": block.v.weight, "attn_output": block.o.weight, "ffn_norm": block.n2.w,
            "ffn_gate": block.gate.weight, "ffn_up": block.up.weight,
            "ffn_down": block.down.weight,
        }
        for name, tensor in weights.items():
            _put(writer, f"blk.{place}.{name}.weight", tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weights: Any, heads: int, shape: Shape) -> Any:
    """Rows in the order of llama's interleaved rotary pairs, from split halves."""
    halves = weights.view(heads, 2, shape.head_size // 2, shape.d)
    return halves.transpose(1, 2).reshape(heads * shape.head_size, shape.d)


def _write_shape(writer: Any, shape: Shape, kind: str) -> None:
    writer.add_name(text.NAME)
    writer.add_description("Tiny demonstration model; simple stories; not for real work")
    writer.add_license("apache-2.0")
    writer.add_context_length(shape.ctx)
    writer.add_embedding_length(shape.d)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(FILE_TYPES[kind])


def _write_tokenizer(writer: Any, shape: Shape, tokenizer: Any) -> None:
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    by_id = {number: token for token, number in vocab.items()}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    special |= {number for number in range(shape.vocab) if number not in by_id}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(i, f"<|unused{i}|>") for i in range(shape.vocab)])
    writer.add_token_types(
        [kinds.CONTROL if i in special else kinds.NORMAL for i in range(shape.vocab)]
    )
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_bos_token_id(vocab[text.END_OF_TEXT])
    writer.add_eos_token_id(vocab[text.END])
    writer.add_eot_token_id(vocab[text.END_OF_TEXT])
    writer.add_pad_token_id(vocab[text.END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(text.CHAT_TEMPLATE)


def _put(writer: Any, name: str, tensor: Any, kind: str) -> None:
    values = tensor.detach().float().numpy()
    if values.ndim == 1:
        writer.add_tensor(name, values)
    elif kind == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        quantized = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)


def export_transformers(network: Network, shape: Shape, tokenizer: Path, out: Path) -> None:
    """The same weights in bf16 as a LlamaForCausalLM folder."""
    out.mkdir(parents=True, exist_ok=True)
    named = {"model.embed_tokens.weight": network.emb.weight, "model.norm.weight": network.norm.w}
    for place, block in enumerate(network.blocks):
        weights = {
            "self_attn.q_proj": block.q.weight, "self_attn.k_proj": block.k.weight,
            "self_attn.v_proj": block.v.weight, "self_attn.o_proj": block.o.weight,
            "mlp.gate_proj": block.gate.weight, "mlp.up_proj": block.up.weight,
            "mlp.down_proj": block.down.weight, "input_layernorm": block.n1.w,
            "post_attention_layernorm": block.n2.w,
        }
        named |= {f"model.layers.{place}.{name}.weight": w for name, w in weights.items()}
    tensors = {name: w.detach().to(torch.bfloat16).contiguous() for name, w in named.items()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    vocab = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    for name, content in _transformers_files(shape, vocab).items():
        (out / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    shutil.copy(tokenizer, out / "tokenizer.json")


def _transformers_files(shape: Shape, vocab: dict[str, int]) -> dict[str, dict[str, object]]:
    start, end = vocab[text.END_OF_TEXT], vocab[text.END]
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": shape.d, "intermediate_size": shape.ff,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_size,
            "vocab_size": shape.vocab, "max_position_embeddings": shape.ctx,
            "rms_norm_eps": shape.eps, "rope_theta": shape.theta, "tie_word_embeddings": True,
            "hidden_act": "silu", "bos_token_id": start, "eos_token_id": end,
            "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
        },
        "generation_config.json": {"eos_token_id": [end, start], "bos_token_id": start},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": text.END,
            "bos_token": text.END_OF_TEXT, "pad_token": text.END_OF_TEXT,
            "chat_template": text.CHAT_TEMPLATE, "model_max_length": shape.ctx,
            "clean_up_tokenization_spaces": False,
        },
    }
