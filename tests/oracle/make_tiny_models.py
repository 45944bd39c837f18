"""Writes seeded tiny GGUF models and their expected logits (tests/fixtures/tiny).

    python tests/oracle/make_tiny_models.py

Each case is a transformers model with random weights. Its file is laid out exactly as llama.cpp's
converter would write it (names, metadata keys, interleaved q/k rows of `llama`, norm weights plus
one of `gemma3`), and its logits come from transformers in float32. Before a case is written, three
things are checked: the second oracle (plain_forward.py) reads the finished file and finds the same
logits; transformers' own GGUF loader does too, where it supports the features; and leaving out the
feature that the case is about changes the logits by far more than any tolerance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import torch
import without_rope
from plain_forward import PlainModel
from reference import REPOSITORY
from tiny_vocab import SAMPLES, Vocabulary, byte_level_bpe, spm
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

SEED = 1729
N_TOKENS = 64
WINDOW = 16  # a quarter of N_TOKENS, so that most queries have tokens out of their window
F16, F32, BF16 = (
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.BF16,
)

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA3 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "sliding_window": WINDOW,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@dataclass
class Case:
    """One tiny model: its difference from the base configuration and how it is stored."""

    name: str
    about: str
    config: dict[str, object] = field(default_factory=dict)
    family: str = "llama"  # or mistral, gemma3, bloom, gpt2, mpt
    vocabulary: str = "bpe"  # or spm; gemma3 always has its own SPM
    weight_type: gguf.GGMLQuantizationType = F16
    loads_in_transformers: bool = True  # False: its GGUF loader ignores what the case is about
    # Features that PlainModel is told to leave out, each of which must change the logits.
    sensitive_to: tuple[str, ...] = ()


def _rope(kind: str, **values: float) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


CASES = [
    Case("llama-tied", "GQA, tied output, byte-level BPE"),
    Case(
        "llama-untied",
        "GQA, own output matrix, float32 weights",
        {"tie_word_embeddings": False, "hidden_size": 32},
        weight_type=F32,
    ),
    Case(
        "llama-mha", "as many kv heads as heads, SPM", {"num_key_value_heads": 4}, vocabulary="spm"
    ),
    Case(
        "llama-rope-linear",
        "rope.scaling.type linear",
        _rope("linear", factor=4.0),
        loads_in_transformers=False,
        sensitive_to=("rope_scaling",),
    ),
    Case(
        "llama-rope-llama3",
        "rope_freqs.weight; wavelengths below, inside and above the ramp",
        _rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
        ),
        loads_in_transformers=False,
        sensitive_to=("rope_freqs",),
    ),
    Case(
        "llama-rope-yarn",
        "rope.scaling.type yarn, YaRN's default betas",
        _rope("yarn", factor=4.0, original_max_position_embeddings=64),
        loads_in_transformers=False,
        sensitive_to=("rope_scaling",),
    ),
    Case(
        "llama-rope-yarn-betas",
        "yarn with yarn_beta_fast and yarn_beta_slow in the file",
        _rope(
            "yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=8.0, beta_slow=0.5
        ),
        loads_in_transformers=False,
        sensitive_to=("rope_scaling",),
    ),
    Case(
        "mistral-window",
        "architecture llama with attention.sliding_window, SPM",
        {"sliding_window": WINDOW},
        family="mistral",
        vocabulary="spm",
        loads_in_transformers=False,
        sensitive_to=("window",),
    ),
    Case(
        "llama-head-dim",
        "attention.key_length 32 with d_model 64 and 4 heads",
        {"head_dim": 32, "num_hidden_layers": 1},
    ),
    Case(
        "llama-bias",
        "biases on q, k, v and output; q and k biases interleaved like their rows",
        {"attention_bias": True},
        loads_in_transformers=False,
        sensitive_to=("bias",),
    ),
    Case(
        "gemma3-base",
        "sliding pattern 6 and its window, two rope bases, QK norm, MQA, bfloat16 weights",
        family="gemma3",
        weight_type=BF16,
        sensitive_to=("window", "qk_norm", "local_base"),
    ),
    Case(
        "gemma3-scaled",
        "linear rope scaling of the global layers only, GQA, rope.freq_base_swa in the file",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
        family="gemma3",
        loads_in_transformers=False,
        sensitive_to=("rope_scaling", "local_base"),
    ),
    Case(
        "bloom-base",
        "linear biases of a number of heads that is no power of two, layer norms, fused qkv",
        family="bloom",
        sensitive_to=("alibi", "bias", "embed_norm"),
    ),
    Case(
        "gpt2-base",
        "learned positions, layer norms, fused qkv",
        family="gpt2",
        sensitive_to=("positions", "bias"),
    ),
    Case(
        "mpt-clamp",
        "linear biases, attention.clamp_kqv, no biases, exact GELU",
        {"attn_config": {"clip_qkv": 1.0}},
        family="mpt",
        loads_in_transformers=False,
        sensitive_to=("alibi", "clamp"),
    ),
]


def build_model(case: Case, vocab_size: int, generator: torch.Generator) -> PreTrainedModel:
    """A transformers model with weights that the file's type can hold exactly."""
    bases = {"llama": LLAMA, "mistral": LLAMA, "gemma3": GEMMA3, **without_rope.BASES}
    base = bases[case.family]
    kinds = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
        **without_rope.KINDS,
    }
    config_type, model_type = kinds[case.family]
    config = config_type(**{**base, "vocab_size": vocab_size, **case.config})
    config._attn_implementation = "eager"
    model = model_type(config).eval()
    kept = {F16: torch.float16, BF16: torch.bfloat16, F32: torch.float32}[case.weight_type]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() == 1:
                value = 0.2 * noise
                if name.endswith("weight") and case.family != "gemma3":  # of a norm
                    value = 1.0 + value  # gemma's module adds the one itself
            elif "embed_tokens" in name or "lm_head" in name or without_rope.is_embedding(name):
                value = (0.5 * noise).to(kept).float()
            else:
                # Large enough that attention is far from uniform and every feature shows.
                value = (1.5 * noise / tensor.shape[1] ** 0.5).to(kept).float()
            tensor.copy_(value)
    return model


def interleave(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Row order of q and k in `llama` files: pairs (i, i + half) of a head become neighbours."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_factors(model: PreTrainedModel) -> np.ndarray:
    """rope_freqs.weight of a llama3-scaled model: what each plain frequency is divided by."""
    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    plain = 10000.0 ** (-np.arange(0, dim, 2) / dim)
    return (plain / model.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)


def architecture(case: Case) -> str:
    """general.architecture of a case's file."""
    return "llama" if case.family == "mistral" else case.family


def write_parameters(writer: gguf.GGUFWriter, case: Case, model: PreTrainedModel) -> None:
    """Hyper-parameters under the keys and in the forms that llama.cpp's converter uses."""
    config = model.config
    gemma = case.family == "gemma3"
    writer.add_type("model")
    writer.add_name(f"kvengine tiny {case.name}")
    file_type = {F32: 0, F16: 1, BF16: 32}[case.weight_type]
    if case.family in without_rope.KINDS:
        writer.add_file_type(file_type)
        without_rope.write_parameters(writer, case.family, config)
        return
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(file_type)
    head_dim = case.config.get("head_dim", config.head_dim if gemma else None)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = config.rope_parameters
    if gemma:
        rope, local = rope["full_attention"], rope["sliding_attention"]
        if local["rope_theta"] != 1e4:
            writer.add_rope_freq_base_swa(local["rope_theta"])
    else:
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(
            head_dim or config.hidden_size // config.num_attention_heads
        )
    writer.add_rope_freq_base(rope["rope_theta"])
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "beta_fast" in case.config.get("rope_parameters", {}):
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def write_tensors(writer: gguf.GGUFWriter, case: Case, model: PreTrainedModel) -> None:
    """Weights under llama.cpp's names: matrices in the case's type, vectors in F32."""
    gemma = case.family == "gemma3"
    rotary = case.family not in without_rope.KINDS
    arch = gguf.MODEL_ARCH[architecture(case).upper()]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    if rotary and model.config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(model))
    for name, tensor in model.named_parameters():
        value = tensor.detach().numpy()
        if not gemma and "q_proj" in name:
            value = interleave(value, model.config.num_attention_heads)
        if not gemma and "k_proj" in name:
            value = interleave(value, model.config.num_key_value_heads)
        if gemma and name.endswith("norm.weight"):
            value = value + np.float32(1.0)
        if not rotary:
            value = without_rope.converted(case.family, name, value, model)
            name = name.removeprefix("transformer.") if case.family == "bloom" else name
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise KeyError(f"{name}: gguf has no name for it")
        kind = case.weight_type if value.ndim == 2 else F32
        data = gguf.quantize(np.ascontiguousarray(value), kind)
        writer.add_tensor(target, data, raw_dtype=kind)


def write_gguf(path: Path, case: Case, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """The whole file."""
    writer = gguf.GGUFWriter(path, architecture(case))
    write_parameters(writer, case, model)
    vocabulary.write(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_tensors(writer, case, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.inference_mode()
def check(path: Path, case: Case, ids: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Relative differences (of the logit range) by the other oracles; raises when one is wrong."""
    span = float(expected.max() - expected.min())
    found = {"plain": float(abs(PlainModel(path).logits(ids) - expected).max()) / span}
    if case.loads_in_transformers:
        # Files do not state the attention scale; transformers assumes 256^-1/2 for every gemma3. It
        # assumes 1,024 positions for every gpt2.
        assumed = {
            "gemma3": {"query_pre_attn_scalar": 16},
            "gpt2": {"n_positions": without_rope.CONTEXT},
        }.get(case.family, {})
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            attn_implementation="eager",
            **assumed,
        )
        again = loaded.eval()(torch.from_numpy(ids).long()[None]).logits[0].numpy()
        found["transformers"] = float(abs(again - expected).max()) / span
    for oracle, difference in found.items():
        # Float32 rounding over a few layers leaves about 1e-6; a wrong layout leaves 1e-1.
        if difference > 2e-5:
            raise AssertionError(f"{case.name}: {oracle} differs by {difference:.2e} of the range")
    for feature in case.sensitive_to:
        moved = abs(PlainModel(path, ignore=[feature]).logits(ids) - expected).max() / span
        if moved < 0.05:
            raise AssertionError(f"{case.name}: without {feature} logits move only {moved:.2e}")
        found[f"without {feature}"] = float(moved)
    return found


@torch.inference_mode()
def main() -> None:
    """Writes every case, or none when a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "tests" / "fixtures" / "tiny")
    args = parser.parse_args()
    torch.set_num_threads(1)
    vocabularies = {"bpe": byte_level_bpe(), "spm": spm(False), "gemma3": spm(True)}
    manifest: dict[str, object] = {
        "samples": SAMPLES,
        "sample_ids": {name: v.sample_ids for name, v in vocabularies.items()},
        "models": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        for number, case in enumerate(CASES):
            key = "gemma3" if case.family == "gemma3" else case.vocabulary
            vocabulary = vocabularies[key]
            size = len(vocabulary.tokens)
            generator = torch.Generator().manual_seed(SEED + number)
            model = build_model(case, size, generator)
            ids = torch.randint(4, size, (N_TOKENS,), generator=generator).int().numpy()
            expected = model(torch.from_numpy(ids).long()[None]).logits[0].float().numpy()
            path = staged / f"{case.name}.gguf"
            write_gguf(path, case, model, vocabulary)
            found = check(path, case, ids, expected)
            np.save(staged / f"{case.name}.ids.npy", ids)
            np.save(staged / f"{case.name}.logits.npy", expected)
            manifest["models"][case.name] = {"about": case.about, "vocabulary": key}
            shown = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
            print(f"{case.name}: {path.stat().st_size} bytes; {shown}", flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(staged.iterdir()):
            (args.out / path.name).write_bytes(path.read_bytes())
    text = json.dumps(manifest, indent=2, ensure_ascii=True)
    (args.out / "tiny.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
