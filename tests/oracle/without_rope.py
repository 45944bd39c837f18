"""Tiny models without rotary embeddings: BLOOM, GPT-2 and MPT, as llama.cpp's converter writes them."""

from __future__ import annotations

import gguf
import numpy as np
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    MptForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

# Of transformers, per family: what makes the model, and a base configuration.
KINDS = {
    "bloom": (BloomConfig, BloomForCausalLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "mpt": (MptConfig, MptForCausalLM),
}
CONTEXT = 96
BASES = {
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 6},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT},
}


def is_embedding(name: str) -> bool:
    """Of a parameter of these families: a table that tokens or positions pick rows of."""
    return "word_embeddings.weight" in name or "wte" in name or "wpe" in name


def write_parameters(writer: gguf.GGUFWriter, family: str, config: PretrainedConfig) -> None:
    """Hyper-parameters of these families."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if family == "bloom":
        writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    if family == "mpt":
        if config.attn_config.clip_qkv is not None:
            writer.add_clamp_kqv(config.attn_config.clip_qkv)
        writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)


def converted(family: str, name: str, value: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    """A parameter as files have it: [out, in], and all queries before all keys and all values."""
    if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return value.T  # transformers has them as [in, out]
    if family == "bloom" and "query_key_value" in name:
        heads = value.reshape(model.config.n_head, 3, -1, *value.shape[1:])
        return heads.swapaxes(0, 1).reshape(value.shape)  # from head by head
    return value
