"""The standard harness, PyPI lm-eval 0.4, with models and caches of this engine.

    python -m kvengine.eval.lm_eval_adapter --model kvengine \\
        --model_args pretrained=model.gguf,cache=kivi2 --tasks hellaswag,arc_easy

is `lm_eval` with one more model (in a program of your own, importing this module registers it).
`--model_args` are `pretrained` (a GGUF file, or a model that `kvengine pull` knows), `cache` (a spec,
whose commas are written as semicolons, since the harness splits its arguments at commas), `exact`,
`threads` and `max_length` (most tokens of a request; by default what the model was trained for).

What precedes a continuation is the prefix that is compressed (see :mod:`kvengine.eval.runner`);
continuations of the same context, which follow one another, share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401 (the harness registers its own models only where it finds none)
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from kvengine._core import ConfigError
from kvengine.eval.runner import Runner
from kvengine.model import Model

_CHUNK = 16  # contexts scored, or answers given, together

Request = tuple[tuple[str, str], list[int], list[int]]


@register_model("kvengine")
class KvengineLM(TemplateLM):
    """A model with a cache, as the harness sees it; arguments are told above."""

    def __init__(
        self,
        pretrained: str = "smollm2-135m",
        cache: str = "f16",
        exact: bool | str = False,
        threads: int | str = 0,
        max_length: int | str | None = None,
        **harness: Any,  # batch_size, device, ...: ours to choose
    ) -> None:
        super().__init__()
        path = Path(pretrained)
        load = Model.load if path.exists() or path.suffix == ".gguf" else Model.pull
        self._model = load(pretrained, threads=int(threads))
        yes = str(exact).lower() in ("1", "true", "yes")
        self._runner = Runner(self._model, cache.replace(";", ","), yes)
        if self._runner.method:
            raise ConfigError(f"cache: expected one alone, found {self._runner.method} before it")
        self.max_length = int(max_length) if max_length else self._model.n_ctx
        if self.max_length < 2:
            raise ConfigError(f"max_length: expected at least 2, found {self.max_length}")

    @property
    def eot_token_id(self) -> int:
        return self._runner.start_token(self._model.tokenizer.eos)

    @property
    def prefix_token_id(self) -> int:
        return self._runner.start_token()

    @property
    def tokenizer_name(self) -> str:
        return f"kvengine:{self._model.path.name}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._model.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        return self._model.render(chat_history, add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        return self._runner.encode(string, special=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = []
        groups = (list(group) for _, group in itertools.groupby(requests, lambda each: each[1]))
        bar = tqdm(total=len(requests), desc="loglikelihoods", disable=disable_tqdm)
        for chunk in _chunks(groups):
            pairs = []
            for group in chunk:
                pairs += self._pairs(group)
            for (name, _, _), found in zip(
                itertools.chain.from_iterable(chunk), self._runner.score(pairs), strict=True
            ):
                results.append((found.logprob, found.greedy))
                if name is not None:
                    self.cache_hook.add_partial("loglikelihood", name, results[-1])
                bar.update()
        bar.close()
        return results

    def _pairs(self, group: list[Request]) -> Iterator[Any]:
        """Continuations of one context, which loses its beginning where it is too long."""
        self._runner.begin()
        longest = max(len(continuation) for _, _, continuation in group)
        room = min(longest, self.max_length - 1)
        session = self._runner.prefill(group[0][1][-(self.max_length - room) :], room)
        for _, _, continuation in group:
            yield session, continuation[-room:]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        results = []
        for request in tqdm(requests, desc="rolling", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            found = self._loglikelihood_tokens(parts, disable_tqdm=True)
            results.append(sum(logprob for logprob, _ in found))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        results: list[str] = []
        bar = tqdm(total=len(requests), desc="answers", disable=disable_tqdm)
        for start in range(0, len(requests), _CHUNK):
            chunk = requests[start : start + _CHUNK]
            # Requests of one batch have the same options.
            for _, group in itertools.groupby(chunk, lambda request: repr(request.args[1])):
                results += self._answers(list(group))
            bar.update(len(chunk))
        bar.close()
        return results

    def _answers(self, requests: list[Instance]) -> list[str]:
        options = _options(requests[0].args[1])
        most = min(options.pop("max_tokens"), self.max_length - 1)
        sessions = []
        for request in requests:
            tokens = self.tok_encode(request.args[0]) or [self.prefix_token_id]
            sessions.append(self._runner.prefill(tokens[-(self.max_length - most) :], most))
        answers = self._runner.answer(sessions, [[]] * len(sessions), most, **options)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer.text)
        return [answer.text for answer in answers]


def _options(wanted: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation arguments as ours."""
    until = wanted.get("until") or []
    options: dict[str, Any] = {
        "max_tokens": int(wanted.get("max_gen_toks") or wanted.get("max_new_tokens") or 256),
        "stop": [until] if isinstance(until, str) else list(until),
    }
    if wanted.get("do_sample"):
        names = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        options |= {name: wanted.get(name, usual) for name, usual in names.items()}
    return options


def _chunks(groups: Iterator[list[Request]]) -> Iterator[list[list[Request]]]:
    while chunk := list(itertools.islice(groups, _CHUNK)):
        yield chunk


def main() -> None:
    """`lm_eval` with the model above."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
