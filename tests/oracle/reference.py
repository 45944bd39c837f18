"""Reference models and tokenizers read from GGUF files, independent of kvengine.

Everything a golden file is made from passes through here: transformers in float32 for logits,
`tokenizers`/`sentencepiece` for token ids, and the corrections that transformers' GGUF loading
needs. Nothing in this folder imports kvengine.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as spm
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

REPOSITORY = Path(__file__).resolve().parents[2]

# GGUF token types (llama.cpp's numbering, equal to SentencePiece's).
CONTROL, USER_DEFINED = 3, 4


def data_dir() -> Path:
    """Folder of the evaluation texts: $KVENGINE_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get("KVENGINE_DATA", REPOSITORY.parent / "shared" / "data"))


def read_text(relative: str, root: Path | None = None) -> str:
    """Unpacked text of `relative` (a .txt.gz under the data folder), newlines untouched."""
    path = (root or data_dir()) / relative
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_ids(ids: list[int]) -> str:
    """Hexadecimal SHA-256 of token ids written as little-endian int32."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def read_metadata(path: Path) -> dict[str, object]:
    """All GGUF metadata as plain Python values."""
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


class ReferenceTokenizer:
    """transformers' tokenizer for a GGUF file, corrected, and SentencePiece beside it for SPM."""

    def __init__(self, path: Path) -> None:
        meta = read_metadata(path)
        self.auto = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self.kind = str(meta["tokenizer.ggml.model"])
        # SPM vocabularies ask for BOS unless they say otherwise; byte-level ones do not.
        self.add_bos = bool(meta.get("tokenizer.ggml.add_bos_token", self.kind == "llama"))
        self.bos = int(meta["tokenizer.ggml.bos_token_id"])
        self.eos = int(meta["tokenizer.ggml.eos_token_id"])
        self.spm: SentencePieceProcessor | None = None
        if meta.get("tokenizer.ggml.pre") == "smollm":
            # transformers 5.23 ignores `smollm` and falls back to GPT-2's splitting. The model's
            # own tokenizer.json isolates every digit *first*, which matters for whitespace before
            # digits: "\n\n1" is ["\n\n", "1"], not ["\n", "\n", "1"].
            self.auto.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
        if self.kind == "llama":
            self.spm = _sentencepiece(meta)

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Token ids without BOS; control tokens spelled in the text count only on request.

        SPM vocabularies go through SentencePiece itself (transformers rebuilds merges from the
        vocabulary, which splits runs longer than the longest user-defined piece differently);
        text with control tokens and byte-level vocabularies through transformers.
        """
        if self.spm is not None and not parse_special:
            return self.spm.encode(text)
        return self.encode_auto(text, parse_special)

    def encode_auto(self, text: str, parse_special: bool = False) -> list[int]:
        """The same by transformers alone."""
        self.auto.backend_tokenizer.encode_special_tokens = not parse_special
        return self.auto.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def encode_with_bos(self, text: str) -> list[int]:
        """Token ids with BOS in front when the vocabulary asks for it."""
        return ([self.bos] if self.add_bos else []) + self.encode(text)


def _sentencepiece(meta: dict[str, object]) -> SentencePieceProcessor:
    """A SentencePiece BPE model with the vocabulary of an SPM GGUF file."""
    model = spm.ModelProto()
    rows = zip(
        meta["tokenizer.ggml.tokens"],
        meta["tokenizer.ggml.scores"],
        meta["tokenizer.ggml.token_type"],
        strict=True,
    )
    for text, score, kind in rows:
        piece = model.pieces.add()
        # llama.cpp's converter stores user-defined runs of spaces as real spaces.
        piece.piece = text.replace(" ", "\u2581") if kind == USER_DEFINED else text
        piece.score, piece.type = float(score), int(kind)
    unknown = int(meta["tokenizer.ggml.unknown_token_id"])
    model.pieces[unknown].type = spm.ModelProto.SentencePiece.UNKNOWN
    model.trainer_spec.model_type = spm.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = unknown
    model.trainer_spec.bos_id = int(meta["tokenizer.ggml.bos_token_id"])
    model.trainer_spec.eos_id = int(meta["tokenizer.ggml.eos_token_id"])
    model.trainer_spec.pad_id = int(meta.get("tokenizer.ggml.padding_token_id", -1))
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def load_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' model with the dequantized weights of a GGUF file, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    _check_config(path, model)
    return model.to(dtype)


def _check_config(path: Path, model: PreTrainedModel) -> None:
    """Stops when transformers dropped something of the file that changes the logits.

    The two default models use none of these features, which is verified here rather than assumed;
    plain_forward.py knows them all.
    """
    reader = GGUFReader(path)
    meta = read_metadata(path)
    arch = str(meta["general.architecture"])
    dropped = [key for key in meta if key.startswith(f"{arch}.rope.scaling")]
    dropped += [key for key in meta if key == f"{arch}.rope.freq_base_swa"]
    dropped += [key for key in meta if key == "llama.attention.sliding_window"]
    dropped += [t.name for t in reader.tensors if t.name == "rope_freqs.weight"]
    dropped += [t.name for t in reader.tensors if t.name.endswith(".bias")]
    if dropped:
        raise ValueError(f"{path}: transformers ignores {dropped}; use plain_forward.py")
    if arch == "gemma3":
        _check_gemma3(path, meta, model)


def _check_gemma3(path: Path, meta: dict[str, object], model: PreTrainedModel) -> None:
    """Stops when transformers' defaults for what gemma3 files leave unsaid do not fit this file."""
    expected = {
        "query_pre_attn_scalar": meta["gemma3.attention.key_length"],
        "sliding_window": meta["gemma3.attention.sliding_window"],
        "final_logit_softcapping": None,
    }
    for key, value in expected.items():
        if getattr(model.config, key) != value:
            raise ValueError(f"{path}: {key}: expected {value}, found {getattr(model.config, key)}")
    bases = {k: v["rope_theta"] for k, v in model.config.rope_parameters.items()}
    if bases != {"full_attention": 1e6, "sliding_attention": 1e4}:
        raise ValueError(f"{path}: rope bases: expected 1e6 and 1e4, found {bases}")


@torch.inference_mode()
def logits(model: PreTrainedModel, ids: list[int], first: int = 0) -> np.ndarray:
    """Logits of positions `first`.. of one forward pass, float32 [len(ids) - first, vocab]."""
    hidden = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, first:]
    return model.lm_head(hidden).float().numpy()


@torch.inference_mode()
def last_logits(model: PreTrainedModel, ids: list[int], chunk: int = 2048) -> np.ndarray:
    """Logits of the last token, float32 [vocab]; a KV cache is fed `chunk` tokens at a time."""
    cache = None
    for start in range(0, len(ids), chunk):
        out = model.model(
            torch.tensor([ids[start : start + chunk]]), past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
    return model.lm_head(out.last_hidden_state[0, -1:]).float().numpy()[0]


def ppl_window(ids: list[int], window: int, size: int, bos: int | None) -> list[int]:
    """llama.cpp's perplexity window: consecutive `size` tokens, the first one replaced by BOS.

    `ids` are the tokens of the whole text (with BOS in front when the vocabulary asks for it).
    """
    part = list(ids[window * size : (window + 1) * size])
    if bos is not None:
        part[0] = bos
    return part
