"""Models and sessions: the engine's classes, and what Python adds to them.

That is little: prompts may be text or conversations, and models may be fetched by name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvengine import _core
from kvengine.batch import BatchAnswer, BatchStream
from kvengine.cache_names import translate
from kvengine.chat import render_template

Message = Mapping[str, Any]
"""One message of a conversation: at least ``role`` and ``content``."""

Progress = Callable[[int, int], "bool | None"]
"""Called with the tokens done and to do; returning False cancels."""

Floats = NDArray[np.float32]
Scorer = Callable[[Floats, Floats, Floats, Floats], NDArray[np.floating]]
"""``score(keys, values, queries, attention_mass)`` of one kv head, called when tokens are dropped.

``keys`` and ``values`` [n_tokens, head_dim] as attention sees them, ``queries`` [window, query heads,
head_dim] the newest ones of the heads that read them, ``attention_mass`` [n_tokens] the weights that
these gave, summed. Returns [n_tokens] numbers: the tokens of the highest stay.
"""

Prompt = str | bytes | Sequence[int] | Sequence[Message]
"""Text, token ids, or the messages of a conversation."""


class CacheWarning(UserWarning):
    """A cache is known to damage models like the one it is for: what was measured, what to use."""


class Model(_core.Model):
    """A loaded model: immutable weights and a tokenizer, shared by any number of sessions.

    Several threads may use sessions of one model; their forward passes take turns.
    """

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        threads: int = 0,
        isa: str = "",
        repack: bool = True,
        device: str = "cpu",
    ) -> Model:
        """Load a GGUF file (of a split model: its first part).

        Args:
            path: the file.
            threads: 0 uses every processor this process may use.
            isa: ``"scalar"``, ``"avx2"``, ``"avx512"``, ...; ``""`` uses the best there is.
            repack: copy weights to the layout that is read fastest (``repacked_bytes`` more memory
                while the file's pages are given back); else they are read from the mapped file.
            device: ``"cpu"``, ``"cuda"`` (an NVIDIA GPU), or ``"auto"``: the GPU where there is one,
                else the CPU, and ``device_note`` says why. ``"cuda:cache=8GiB"``: pages of caches
                take at most so much of the GPU's memory, and others wait in the host's.

        Raises:
            IoError: the file is missing or unreadable.
            FormatError: it is malformed.
            UnsupportedError: its architecture, tokenizer or a feature is not supported.
            ConfigError: a bad option.
            DeviceError: there is no GPU, or this build of kvengine does not know it.
            CapacityError: no memory for the repacked weights.
        """
        return cls(path, threads, isa, repack, device)

    @classmethod
    def pull(
        cls,
        name: str = "smollm2-135m",
        threads: int = 0,
        isa: str = "",
        repack: bool = True,
        device: str = "cpu",
    ) -> Model:
        """Load a model by name, downloading it first when it is absent (see :mod:`kvengine.pull`).

        Args:
            name: a known name, or ``hf:OWNER/REPO/FILE.gguf``.

        Raises:
            ConfigError: an unknown name.
            IoError: the download failed.
        """
        from kvengine.pull import obtain

        return cls.load(obtain(name), threads, isa, repack, device)

    def session(
        self,
        n_ctx: int = 0,
        cache: str = "f16",
        exact: bool = False,
        n_batch: int = 0,
        kv_budget: str | int | None = None,
        scorer: Scorer | None = None,
    ) -> Session:
        """Start an empty conversation.

        Args:
            n_ctx: most tokens it may hold; 0: what the model was trained for.
            cache: how keys and values are kept, e.g. ``"int4:group=32,tail=64"``; see
                :func:`kvengine.caches`, and :mod:`kvengine.cache_names` for names of transformers
                and kvpress.
            exact: compute with f32 activations instead of int8 (or bf16): slower, the reference.
            n_batch: tokens per forward pass while a prompt is read; 0: 512 where the cache keeps
                all keys and values as they are until the prompt is read, else 256, or up to 512
                while much of the prompt is to follow.
            kv_budget: what the cache may take at most: ``"64MiB"``, bytes, or ``"bits=3"``. With
                ``cache="auto"`` a cache is planned that never takes more (:meth:`plan_cache`). Any
                other raises CapacityError when it would, one with tiers (``older=``) only when all
                of its pages are in their last tier.
            scorer: which tokens stay in a cache with the selector ``custom``, e.g.
                ``"custom:keep=0.25,window=64+int4"``.

        Warns:
            CacheWarning: the cache is known to damage models like this one.

        Raises:
            ConfigError: a bad option, or a cache spec that does not fit the model.
        """
        if cache == "auto":
            if kv_budget is None:
                raise _core.ConfigError("cache: expected 'auto' together with kv_budget")
            n_batch = n_batch or 256  # sealed caches: what a session would choose, and planned for
            cache = self.plan_cache(str(kv_budget), n_ctx, n_batch).spec
            kv_budget = None
        cache = translate(cache)
        session = Session(
            self,
            n_ctx=n_ctx,
            cache=cache,
            exact=exact,
            n_batch=n_batch,
            kv_budget="" if kv_budget is None else str(kv_budget),
            scorer=scorer,
        )
        for text in self.cache_warnings(cache):
            warnings.warn(text, CacheWarning, stacklevel=2)
        return session

    def restore(self, path: str | os.PathLike[str], scorer: Scorer | None = None) -> Session:
        """Go on, bit-identically, with a session that :meth:`Session.save` wrote.

        Args:
            path: the file.
            scorer: of a cache with the selector ``custom``, as for :meth:`session`; files do not
                keep it.

        Raises:
            IoError: the file is missing or unreadable.
            FormatError: it is damaged or cut short.
            ConfigError: it was written by another model, or its cache needs a scorer and none is
                given, or the other way round.
            UnsupportedError: it was written by a newer version.
        """
        return Session(self, restore=path, scorer=scorer)

    def forward_batch(
        self,
        sessions: Sequence[Session],
        tokens: Sequence[Sequence[int] | NDArray[np.integer]],
        all_logits: bool = False,
        progress: Progress | None = None,
    ) -> list[NDArray[np.float32]]:
        """Read ``tokens[i]`` into ``sessions[i]``, for all of them together.

        The sessions (forks of one that holds a common beginning, for instance) share the reads of
        the weights: scoring several continuations costs little more than scoring one. Returns what
        :meth:`Session.forward` would return for each.

        Raises:
            ConfigError: no sessions, one twice, sessions of other models or precisions; bad tokens.
            CapacityError: more tokens than a session may hold; nothing was read then.
            CancelledError: ``progress`` returned False; chunks that were finished stay.
        """
        return _core.forward_batch(sessions, tokens, all_logits, progress)

    def generate_batch(
        self, prompts: Sequence[Prompt], max_tokens: int = 64, **options: Any
    ) -> list[BatchAnswer]:
        """Answer several prompts, decoding them together; see :meth:`stream_batch`."""
        stream = self.stream_batch(prompts, max_tokens, **options)
        for _ in stream:
            pass
        return stream.answers

    def stream_batch(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int = 64,
        *,
        parallel: int = 8,
        sessions: Sequence[Session] | None = None,
        n_ctx: int = 0,
        cache: str = "f16",
        exact: bool = False,
        n_batch: int = 0,
        **options: Any,
    ) -> BatchStream:
        """Answer several prompts, decoding them together.

        Sequences of one batch share the reads of the weights, which is what decoding waits for:
        eight together take little longer than one. An answer does not depend on the other prompts;
        it has the tokens that the prompt would get alone, except that prompts of a few tokens,
        which are read together, and more than eight parallel sequences may round differently.

        Args:
            prompts: of each answer, as in :meth:`Session.generate`.
            max_tokens: most tokens of each answer; -1: until its context is full.
            parallel: most answers at a time; when one ends, the next prompt takes its place.
            sessions: one for each prompt, to go on in (all of one precision), instead of new
                sessions made with `n_ctx`, `cache`, `exact` and `n_batch` (see :meth:`session`).
            options: what :meth:`Session.generate` takes: temperature, stop, seed, ...

        Returns:
            An iterator over (index, piece). Its ``answers`` hold everything that came. A prompt that
            does not fit its context, or that fails otherwise, ends with ``finish_reason`` "error";
            the others go on.

        Raises:
            ConfigError: a bad option or prompt.
        """
        if sessions is not None and len(sessions) != len(prompts):
            raise _core.ConfigError(
                f"sessions: expected one for each of {len(prompts)} prompts, found {len(sessions)}"
            )

        def open_session(index: int) -> tuple[Session, Sequence[int]]:
            session = (
                sessions[index]
                if sessions is not None
                else self.session(n_ctx, cache, exact, n_batch)
            )
            return session, session.prompt_tokens(prompts[index])

        return BatchStream(
            self, len(prompts), parallel, generate_options(max_tokens, **options), open_session
        )

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Write a conversation the way the model's own chat template does.

        Raises:
            UnsupportedError: the model carries no template.
            ConfigError: the template refuses the messages.
        """
        variables["add_generation_prompt"] = add_generation_prompt
        return render_messages(self.file, self.tokenizer, messages, **variables)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of :meth:`render`, beginning with BOS (once) if the vocabulary asks for it."""
        text = self.render(messages, add_generation_prompt, **variables)
        tokens = self.tokenizer.encode(text, add_special=False, parse_special=True)
        bos = self.tokenizer.bos
        if self.tokenizer.add_bos and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def __repr__(self) -> str:
        return f"<Model {self.architecture} {self.name!r}, {self.n_layers} layers, {self.backend}>"


class Session(_core.Session):
    """One conversation: its tokens and their compressed cache. Made by :meth:`Model.session`.

    Belongs to one thread at a time. A call that raises leaves the session as it was, except that
    finished chunks of a long :meth:`forward` stay (see ``n_tokens``).
    """

    _drafter: Session | None = None

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        self._model = model

    @property
    def model(self) -> Model:
        """The model the session belongs to."""
        return self._model

    @property
    def cache(self) -> _core.Cache:
        """The keys and values: ``cache.stats()``, ``cache.keys(layer, head)``, ..."""
        return _core.Cache(self)

    def fork(self) -> Session:
        """Copy the session; the copy shares full pages and goes its own way."""
        copy = Session.__new__(Session)
        _core.Session.__init__(copy, self)
        copy._model = self._model
        return copy

    def generate(
        self,
        prompt: Prompt,
        max_tokens: int = 64,
        temperature: float = 0.0,
        *,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        logit_bias: Mapping[int, float] | None = None,
        ignore_eos: bool = False,
        render_special: bool = False,
        draft: Literal["lookup"] | Model | None = None,
        draft_max: int = 7,
        progress: Progress | None = None,
    ) -> _core.Generation:
        """Read a prompt and return an iterator over the pieces of the answer.

        A piece has ``.text`` (complete UTF-8, maybe empty), ``.token`` and ``.logprob``. The
        iterator has ``.finish_reason``; closing it cancels the answer.

        Args:
            prompt: Text or token ids, which follow what the session holds; or the messages of a
                whole conversation, of which only what is new is read. Text that spells a control
                token becomes that token.
            max_tokens: most tokens of the answer; -1: until the context is full.
            temperature: 0 always takes the likeliest token.
            top_k: keep the k likeliest tokens; 0: off.
            top_p: keep the likeliest tokens that reach this mass; 1: off.
            min_p: drop tokens less likely than this times the likeliest; 0: off.
            typical_p: locally typical sampling; 1: off.
            repeat_penalty: divides the logits of tokens seen before; 1: off.
            repeat_last_n: how many tokens the penalties look back; 0: none, -1: all.
            presence_penalty: subtracted from the logit of every token seen before.
            frequency_penalty: subtracted once for each time a token was seen.
            seed: the same seed draws the same text on every machine.
            stop: texts that end the answer and are not part of it.
            logit_bias: added to the logits of tokens; ``-inf`` bans one.
            ignore_eos: never choose a token that ends the answer.
            render_special: spell control tokens out in the text.
            draft: speculation: tokens are guessed, several are computed together, and those that
                come anyway are kept. The text is the same, and comes faster where guesses are
                right. ``"lookup"`` guesses what followed the same words before (in quotations,
                summaries, code); a smaller model with the same vocabulary guesses by itself.
            draft_max: most tokens guessed at a time, of which at most 7 are used; 0: none.
            progress: called while a long prompt is read.

        Raises:
            ConfigError: a bad option, an empty prompt in an empty session, a draft model with
                another vocabulary.
            CapacityError: the prompt does not fit the context.
            UnsupportedError: messages, but the model carries no chat template.
        """
        options = generate_options(
            max_tokens,
            temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            repeat_last_n=repeat_last_n,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop,
            logit_bias=logit_bias,
            ignore_eos=ignore_eos,
            render_special=render_special,
            draft_max=draft_max if draft is not None else 0,
            draft=self._draft_session(draft),
        )
        return _core.Generation(self, self.prompt_tokens(prompt), options, progress)

    def _draft_session(self, draft: object) -> Session | None:
        """A session of the draft model, kept for the next answer."""
        if draft is None or draft == "lookup":
            return None
        if not isinstance(draft, Model):
            raise _core.ConfigError(f"draft: expected 'lookup' or a Model, found {draft!r}")
        if self._drafter is None or self._drafter.model is not draft:
            self._drafter = draft.session(n_ctx=self.n_ctx, exact=self.exact)
        return self._drafter

    def prompt_tokens(self, prompt: Prompt) -> Sequence[int]:
        """The tokens of `prompt` that have yet to be read.

        Of a conversation the longest common beginning with what the session holds is kept, and what
        the session holds beyond is forgotten.
        """
        if isinstance(prompt, str | bytes):
            return self._model.tokenizer.encode(
                prompt, add_special=self.n_tokens == 0, parse_special=True
            )
        if len(prompt) > 0 and isinstance(prompt[0], Mapping):
            tokens = self._model.encode_chat(prompt)  # type: ignore[arg-type]
            return tokens[self.reuse_prefix(tokens) :]
        return prompt  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<Session {self.n_tokens}/{self.n_ctx} tokens, cache {self.cache.spec}>"


def generate_options(
    max_tokens: int = 64,
    temperature: float = 0.0,
    *,
    stop: str | Sequence[str] | None = None,
    logit_bias: Mapping[int, float] | None = None,
    **options: Any,
) -> _core.GenerateOptions:
    """The options of :meth:`Session.generate` as the engine takes them."""
    return _core.GenerateOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        stop=[stop] if isinstance(stop, str) else list(stop or ()),
        logit_bias=list((logit_bias or {}).items()),
        **options,
    )


def render_messages(
    file: _core.GgufFile,
    tokenizer: _core.Tokenizer,
    messages: Sequence[Message],
    /,
    **variables: Any,
) -> str:
    """Render a conversation by the template in `file`, which needs no tensors; see Model.render."""
    template = file.get("tokenizer.chat_template", "")
    if not template:
        raise _core.UnsupportedError(
            f"{file.path}: expected a chat template (tokenizer.chat_template), found none"
        )
    if "template" in variables:
        raise _core.ConfigError("variables: expected names other than 'template', found it")

    def text(token: int | None) -> str:
        return "" if token is None else tokenizer.token_text(token)

    tokens = {"bos_token": text(tokenizer.bos), "eos_token": text(tokenizer.eos)}
    return render_template(template, messages, **(tokens | variables))
