"""Small vocabularies for the tiny models, trained on a text written for this project."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

from gguf import GGUFWriter, TokenType
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = """The cache keeps what the model has read. The model reads one token, then the next token,
and the cache grows with each of them. When the cache is small, the model reads the tokens again.
There is a lamp in the harbour and there is a boat on the water; the boat waits for the lamp, and
the lamp waits for the night. Numbers such as 12, 345 and 6789 are read digit by digit, and names
such as Anna, Otto and Hannah are read from the left and from the right."""

# Encoded by every tiny vocabulary into tokens.json.
SAMPLES = [
    "The cache keeps the token.",
    "  the lamp, and   the boat\n\nwaits",
    "Anna reads 12345 tokens; Otto isn't here.",
    "Zürich 東京 🙂",
]


@dataclass
class Vocabulary:
    """What the tokenizer.ggml.* keys hold, and the ids of SAMPLES by the library it came from."""

    model: str
    pre: str
    tokens: list[bytes]
    types: list[int]
    bos: int
    eos: int
    unknown: int
    padding: int | None
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_bos: bool = True
    add_space_prefix: bool | None = None
    sample_ids: list[list[int]] = field(default_factory=list)

    def write(self, writer: GGUFWriter) -> None:
        """Adds the vocabulary's keys in the order of llama.cpp's converter."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_unk_token_id(self.unknown)
        if self.padding is not None:
            writer.add_pad_token_id(self.padding)
        writer.add_add_bos_token(self.add_bos)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)


def byte_level_bpe() -> Vocabulary:
    """3 control tokens, 256 bytes and 37 merges, split as GPT-2 does."""
    specials = ["<|unk|>", "<|bos|>", "<|eos|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=296,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    merges = [tuple(pair) for pair in _merges(tokenizer)]
    return Vocabulary(
        model="gpt2",
        pre="gpt-2",
        tokens=[by_id[index].encode() for index in range(len(by_id))],
        types=[
            TokenType.CONTROL if by_id[index] in specials else TokenType.NORMAL
            for index in range(len(by_id))
        ],
        merges=[" ".join(pair) for pair in merges],
        bos=1,
        eos=2,
        unknown=0,
        padding=None,
        add_bos=False,
        sample_ids=[tokenizer.encode(text).ids for text in SAMPLES],
    )


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    """Merge list of a BPE tokenizer, in order of priority."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [m if isinstance(m, list) else m.split(" ") for m in merges]


def spm(gemma: bool) -> Vocabulary:
    """A SentencePiece BPE model with byte fallback: Llama's special ids and prefix, or Gemma's."""
    ids = (
        {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
        if gemma
        else {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}
    )
    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split("\n")),
        model_writer=stream,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=not gemma,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
        **ids,
    )
    processor = SentencePieceProcessor(model_proto=stream.getvalue())
    types = []
    for index in range(processor.get_piece_size()):
        if processor.is_unknown(index):
            types.append(TokenType.UNKNOWN)
        elif processor.is_control(index):
            types.append(TokenType.CONTROL)
        elif processor.is_byte(index):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=[processor.id_to_piece(i).encode() for i in range(len(types))],
        scores=[processor.get_score(i) for i in range(len(types))],
        types=types,
        bos=processor.bos_id(),
        eos=processor.eos_id(),
        unknown=processor.unk_id(),
        padding=processor.pad_id() if gemma else None,
        add_space_prefix=False if gemma else None,
        sample_ids=[processor.encode(text) for text in SAMPLES],
    )
