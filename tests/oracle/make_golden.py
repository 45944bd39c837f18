"""Writes the golden files of the real models (tests/fixtures/golden).

    python tests/oracle/make_golden.py --model smollm2-135m=PATH.gguf --model gemma3-270m=PATH.gguf

Texts are read from the data folder and never stored: golden files hold ids, hashes and numbers.
What each file holds is told in README.md beside this script.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from hard_strings import PLAIN, SPECIAL
from reference import (
    REPOSITORY,
    ReferenceTokenizer,
    data_dir,
    last_logits,
    load_model,
    logits,
    ppl_window,
    read_text,
    sha256_file,
    sha256_ids,
)
from transformers import PreTrainedModel

SEED = 20240607
WIKITEXT = "ppl/wikitext2_raw_test.txt.gz"
BOOK = "books/middlemarch.txt.gz"
WINDOW = 2048
WINDOWS = 2
TOP = 64
EVERY = 8
LONG_TOKENS = {"llama": 8192, "gemma3_text": 16384}
GREEDY_TOKENS = 64

CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is the capital of France, and what river runs through it?"}],
    [
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    [
        {"role": "user", "content": "Name three primary colours."},
        {"role": "assistant", "content": "Red, yellow and blue."},
        {"role": "user", "content": "Write a Python function that returns them as a list."},
    ],
]

# For base models, whose files carry no chat template.
COMPLETIONS: list[str] = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea, there lived",
]


def sample_ids(vocab: int, count: int) -> np.ndarray:
    """`count` distinct vocabulary ids, the same on every run."""
    chosen = np.random.default_rng(SEED).choice(vocab, size=count, replace=False)
    return np.sort(chosen).astype(np.int32)


def margins(rows: np.ndarray) -> np.ndarray:
    """Top-1 minus top-2 logit of each row."""
    top2 = np.partition(rows, -2, axis=-1)[..., -2:]
    return (top2[..., 1] - top2[..., 0]).astype(np.float32)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Row-wise log-probabilities, computed in double precision by torch, float32."""
    return torch.log_softmax(torch.from_numpy(rows).double(), dim=-1).float().numpy()


def logits512(model: PreTrainedModel, ids: list[int]) -> dict[str, np.ndarray]:
    """Sampled logits of every position of the first 512 tokens."""
    rows = logits(model, ids)
    columns = sample_ids(rows.shape[1], 96)
    return {
        "ids": np.asarray(ids, np.int32),
        "vocab_ids": columns,
        "logits": rows[:, columns],
        "argmax": rows.argmax(-1).astype(np.int32),
        "min": rows.min(-1),
        "max": rows.max(-1),
        "margin": margins(rows),
    }


def window2048(
    model: PreTrainedModel, windows: list[list[int]], reference: Path | None, key: str
) -> tuple[dict[str, np.ndarray], list[float]]:
    """NLL, arg-max and truncated distributions of the scored half of each window."""
    half = WINDOW // 2
    columns: dict[str, list[np.ndarray]] = {}
    ppl = []
    for number, ids in enumerate(windows):
        # Positions half .. WINDOW-2 predict tokens half+1 .. WINDOW-1: llama.cpp's scored half.
        rows = logits(model, ids, first=half)[:-1]
        logp = log_softmax(rows)
        nll = -logp[np.arange(len(logp)), ids[half + 1 :]]
        ppl.append(float(np.exp(nll.astype(np.float64).mean())))
        part = logp[::EVERY]
        top = np.argsort(-part, axis=-1, kind="stable")[:, :TOP].astype(np.int32)
        top_logp = np.take_along_axis(part, top, axis=-1)
        mass = np.exp(part.astype(np.float64))
        np.put_along_axis(mass, top.astype(np.int64), 0.0, axis=-1)
        values = {
            "ids": np.asarray(ids, np.int32),
            "argmax": rows.argmax(-1).astype(np.int32),
            "margin": margins(rows),
            "nll": nll,
            "top_ids": top,
            "top_logp": top_logp,
            "rest_logp": np.log(mass.sum(-1)).astype(np.float32),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
        if reference is not None:
            # Half precision is exact enough for vocabularies that would take gigabytes otherwise:
            # its rounding is unbiased and adds less than 1e-5 to a mean KLD over 1023 positions.
            wide = logp if logp.shape[1] < 100_000 else logp.astype(np.float16)
            np.save(reference / f"{key}.window{number}.logp.npy", wide)
    return {name: np.stack(value) for name, value in columns.items()}, ppl


def long_context(model: PreTrainedModel, ids: list[int]) -> dict[str, np.ndarray]:
    """Sampled logits of the last token of a long text."""
    row = last_logits(model, ids)
    columns = sample_ids(len(row), 4096)
    return {
        "n_tokens": np.int32(len(ids)),
        "ids_sha256": np.array(sha256_ids(ids)),
        "vocab_ids": columns,
        "logits": row[columns],
        "argmax": np.int32(row.argmax()),
        "min": row.min(),
        "max": row.max(),
        "margin": margins(row[None])[0],
    }


@torch.inference_mode()
def greedy(model: PreTrainedModel, tokenizer: ReferenceTokenizer) -> dict[str, np.ndarray]:
    """Greedy continuations; a chat prompt where the file has a template, else plain text."""
    found: dict[str, np.ndarray] = {}
    chat = tokenizer.auto.chat_template is not None
    for number in range(3):
        if chat:
            text = tokenizer.auto.apply_chat_template(
                CHATS[number], tokenize=False, add_generation_prompt=True
            )
            prompt = tokenizer.encode(text, parse_special=True)
        else:
            prompt = tokenizer.encode_with_bos(COMPLETIONS[number])
        output, gaps, cache, feed = [], [], None, prompt
        while len(output) < GREEDY_TOKENS:
            out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            row = out.logits[0, -1:].numpy()
            output.append(int(row.argmax()))
            gaps.append(margins(row)[0])
            if output[-1] == tokenizer.eos:
                break
            feed = output[-1:]
        found[f"prompt{number}"] = np.asarray(prompt, np.int32)
        found[f"output{number}"] = np.asarray(output, np.int32)
        found[f"margin{number}"] = np.asarray(gaps, np.float32)
    return found


def tokenize(tokenizer: ReferenceTokenizer) -> dict[str, object]:
    """Ids of the hard strings; `auto_differs` lists plain strings where transformers disagrees."""
    plain = [tokenizer.encode(text) for text in PLAIN]
    differs = [i for i, text in enumerate(PLAIN) if tokenizer.encode_auto(text) != plain[i]]
    return {
        "add_bos": tokenizer.add_bos,
        "plain": plain,
        "special": [tokenizer.encode(text, parse_special=True) for text in SPECIAL],
        "auto_differs": differs,
    }


def parse_arguments() -> argparse.Namespace:
    """Command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, metavar="KEY=PATH.gguf")
    parser.add_argument("--data", type=Path, default=data_dir(), help="folder of the texts")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "tests" / "fixtures" / "golden")
    parser.add_argument("--reference", type=Path, help="also write full log-probabilities here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--case",
        action="append",
        choices=["logits512", "window2048", "long", "greedy", "tokenize"],
        help="only these (repeatable; default: all)",
    )
    return parser.parse_args()


def main() -> None:
    """Writes the golden files asked for and updates manifest.json."""
    args = parse_arguments()
    cases = args.case or ["tokenize", "logits512", "window2048", "greedy", "long"]
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    manifest_path = args.out / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.exists() else {}
    strings_path = args.out / "tokenize.json"
    strings = json.loads(strings_path.read_text()) if strings_path.exists() else {"models": {}}
    strings["plain"], strings["special"] = PLAIN, SPECIAL

    for item in args.model:
        key, _, value = item.partition("=")
        path = Path(value)
        tokenizer = ReferenceTokenizer(path)
        entry = manifest.setdefault(key, {})
        entry["file_sha256"], entry["file_bytes"] = sha256_file(path), path.stat().st_size
        entry["versions"] = {
            name: version(name)
            for name in ("torch", "transformers", "tokenizers", "sentencepiece", "gguf", "numpy")
        }
        if "tokenize" in cases:
            strings["models"][key] = tokenize(tokenizer)
            strings_path.write_text(json.dumps(strings, indent=None, ensure_ascii=True) + "\n")
        if cases == ["tokenize"]:
            continue
        model = load_model(path)
        wikitext = tokenizer.encode_with_bos(read_text(WIKITEXT, args.data))

        def save(case: str, arrays: dict[str, np.ndarray], key: str = key) -> None:
            np.savez_compressed(args.out / f"{key}.{case}.npz", **arrays)
            print(f"{key}.{case}: done", flush=True)

        if "logits512" in cases:
            save("logits512", logits512(model, wikitext[:512]))
        if "window2048" in cases:
            bos = tokenizer.bos if tokenizer.add_bos else None
            windows = [ppl_window(wikitext, n, WINDOW, bos) for n in range(WINDOWS)]
            arrays, entry["ppl"] = window2048(model, windows, args.reference, key)
            print(f"{key}: perplexities {entry['ppl']}", flush=True)
            save("window2048", arrays)
        if "greedy" in cases:
            save("greedy", greedy(model, tokenizer))
        if "long" in cases:
            count = LONG_TOKENS[model.config.model_type]
            book = tokenizer.encode_with_bos(read_text(BOOK, args.data))[:count]
            save("long", long_context(model, book))
        manifest_path.write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main()
