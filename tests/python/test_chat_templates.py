"""Chat templates: the texts Hugging Face transformers writes, and what hostile templates may do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvengine import ConfigError, sandbox
from kvengine.chat import render_template

TEMPLATES = sorted((Path(__file__).parents[1] / "fixtures" / "chat_templates").glob("*.jinja"))
TEMPLATES_BY_NAME = {path.stem: path for path in TEMPLATES}
END_OF_SENTENCE = "<｜end▁of▁sentence｜>"
# The special tokens of the families that end sequences with something else than </s>.
EOS = {
    "falcon3": "<|endoftext|>",
    "phi3": "<|endoftext|>",
    "deepseek2": END_OF_SENTENCE,
    "deepseek3": END_OF_SENTENCE,
    "deepseek-r1": END_OF_SENTENCE,
}
SYSTEM = {"role": "system", "content": "Answer briefly.\n"}
CONVERSATION = [
    {"role": "user", "content": "  Hello\n"},
    {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nFour."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "   I am an assistant   "},
    {"role": "user", "content": "Another {eos} question\u3000"},
]
USER = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city, in °C & <b>bold</b>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def eos_of(path: Path) -> str:
    """The end-of-sequence token of the family a fixture belongs to."""
    return EOS.get(path.stem.rpartition(".")[0], "</s>")


def refusal(template: str, messages: Any = USER, **options: Any) -> str:
    """The message of the ConfigError that rendering must raise."""
    with pytest.raises(ConfigError) as caught:
        render_template(template, messages, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_public_templates(path: Path) -> None:
    """The goldens were written by transformers, and the C++ formats are compared with them too."""
    compared = 0
    for kind, messages in (("system", [SYSTEM, *CONVERSATION]), ("plain", CONVERSATION)):
        expected = path.with_suffix(f".{kind}.txt")
        if not expected.exists():
            continue
        text = render_template(
            path.read_text("utf-8"), messages, bos_token="<s>", eos_token=eos_of(path)
        )
        assert text.removeprefix("<s>") == expected.read_text("utf-8")
        compared += 1
    assert compared


def test_there_are_templates() -> None:
    assert len(TEMPLATES) >= 40


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_same_as_transformers(path: Path) -> None:
    """Every combination of messages, tools and generation prompt that the template accepts."""
    utilities = pytest.importorskip(
        "transformers.utils.chat_template_utils",
        reason="transformers is not installed: only the goldens of chat templates are compared",
    )
    template = path.read_text("utf-8")
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "weather", "arguments": {"city": "Zürich <&>"}},
            }
        ],
    }
    answer = {"role": "tool", "content": '{"celsius": 7}', "tool_call_id": "call00001"}
    reasoning = {"role": "assistant", "content": "Yes.", "reasoning": "Why not?"}
    conversations = [
        CONVERSATION,
        [SYSTEM, *CONVERSATION],
        CONVERSATION[:2],
        [SYSTEM, *USER, call, answer],
        [*USER, reasoning, *USER],
        [{"role": "user", "content": [{"type": "text", "text": " parts "}]}],
    ]
    compared = 0
    for messages in conversations:
        for options in (
            {"add_generation_prompt": True},
            {"add_generation_prompt": False},
            {"add_generation_prompt": True, "tools": [WEATHER]},
            {"add_generation_prompt": True, "enable_thinking": False},
        ):
            options = {**options, "bos_token": "<s>", "eos_token": eos_of(path)}
            try:
                expected = utilities.render_jinja_template(
                    [messages], chat_template=template, **options
                )[0][0]
            except Exception:  # whatever a template raises there, it must be a ConfigError here
                refusal(template, messages, **options)
                continue
            assert render_template(template, messages, **options) == expected
            compared += 1
    assert compared >= 4


def render(template: str, messages: Any = USER, **options: Any) -> str:
    return render_template(template, messages, **options)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Block handling: the newline after a block tag and the indentation before it are dropped.
        ("{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\nb\n", "a\nb"),
        ("{{ messages[0].content }}{{ messages[0]['role'] }}", "Hiuser"),
        ("{{ nothing }}|{{ nothing is defined }}", "|False"),
        ("{{ add_generation_prompt }}{{ tools is none }}{{ documents is none }}", "TrueTrueTrue"),
        ("{{ {'a': '<&é\"'} | tojson }}", '{"a": "<&é\\""}'),
        ("{{ {'b': 1, 'a': [1, 2]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    1,\n    2\n  ]\n}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}"
         "{% endif %}{{ i }}{% endfor %}", "0134"),
        ("{% for i in 'abc' %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}",
         "1False32False33True3"),
        ("{% for i in [] %}{% else %}none{% endfor %}", "none"),
        ("{% for i in [1, [2, [3]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}", "123"),
        ("{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
         "4"),
        ("{% generation %}a{% set x = 'b' %}{{ x }}{% endgeneration %}c", "abc"),
        ("{%- generation -%} a {%- endgeneration -%} c", "ac"),
        ("{% macro m(a, b='-') %}{{ a }}{{ b }}{{ caller() if caller }}{% endmacro %}"
         "{{ m('x') }}{% call m('y', 'z') %}!{% endcall %}", "x-yz!"),
        ("{% set x %}a{{ 'b' }}{% endset %}{{ x ~ 1 ~ [2] ~ none }}", "ab1[2]None"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '%s' | format('b') }}{{ '{:>3}'.format(7) }}", "a-3b  7"),
        ("{{ 'abc'[::-1] }}{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ 'a'.center(3) }}", "cbabx a "),
        ("{{ [1, 2] | join('+') }}{{ [{'k': 'v'}] | join('', attribute='k') }}", "1+2v"),
        ("{{ [1, 2] | sum }}{{ [{'k': 3}] | sum(attribute='k') }}{{ [[1], [2]] | sum(start=[]) }}",
         "33[1, 2]"),
        ("{{ 'ab' | replace('a', 'c') | upper | indent(2, true) }}", "  CB"),
        ("{{ dict(a=1).a }}{{ dict.fromkeys('x').x }}{{ {'a': 1} | items | list }}", "1None[('a', 1)]"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{{ 7 // 2 }}{{ 2 ** 5 }}{{ 7 % 4 }}{{ 'ab' * 2 }}{{ [1] + [2] }}{{ -7 / 2 }}", "3323abab[1, 2]-3.5"),
    ],
)  # fmt: skip
def test_helpers(template: str, expected: str) -> None:
    assert render(template) == expected


def test_variables_of_the_caller() -> None:
    assert render("{{ documents[0].title }}", documents=[{"title": "T"}]) == "T"
    assert (
        render("{{ enable_thinking }}{{ bos_token }}", enable_thinking=False, bos_token="<s>")
        == "False<s>"
    )
    assert render("{{ tools | tojson }}", tools=[{"a": "é"}]) == '[{"a": "é"}]'
    assert render("{{ messages[0].reasoning_content }}", [{**USER[0], "thinking": "T"}]) == "T"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("Hi", "messages: expected a list of dicts, found str"),
        (None, "messages: expected a list of dicts, found None"),
        ({"role": "user"}, "messages: expected a list of dicts, found dict"),
        ([], "messages: expected at least one, found none"),
        (["Hi"], "messages[0]: expected a dict, found str"),
        ([*USER, {"content": "a"}], "messages[1]: expected a role, found none"),
        ([{"role": 1, "content": "a"}], "messages[0].role: expected text, found int"),
        ([{"role": "", "content": "a"}], "messages[0].role: expected text, found empty text"),
        ([{"role": "user"}], "messages[0]: expected content, found none"),
        ([{"role": "user", "content": None}], "messages[0]: expected content, found none"),
        ([{"role": "user", "content": 5}], "messages[0].content: expected text or a list of parts, found int"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]: expected a dict, found str"),
    ],
)  # fmt: skip
def test_malformed_messages(messages: Any, expected: str) -> None:
    assert refusal("x", messages) == expected


def test_malformed_options() -> None:
    assert refusal("x", tools="weather") == "tools: expected a list of dicts, found str"
    assert (
        refusal("x", tools=[print]) == "tools[0]: expected a dict, found builtin_function_or_method"
    )
    assert refusal("x", documents=[1]) == "documents[0]: expected a dict, found int"
    assert refusal(None) == "chat template: expected text, found None"  # type: ignore[arg-type]
    assert refusal("x" * (2 << 20)).startswith("chat template: expected at most 1048576 characters")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ raise_exception('Roles must\nalternate') }}", "chat template: Roles must alternate"),
        ("a\n{% if %}", "chat template, line 2: Expected an expression, got 'end of statement block'"),
        ("a\n\n{% nonsense %}", "chat template, line 3: Encountered unknown tag 'nonsense'."),
        ("{{ nothing.at.all }}", "chat template: 'nothing' is undefined"),
        ("{{ 1 / 0 }}", "chat template: ZeroDivisionError: division by zero"),
        ("{{ 'a' + 1 }}", "chat template: TypeError: "),
        ("{{ messages[0].content.nothing() }}", "chat template: 'str object' has no attribute 'nothing'"),
        ("{% include 'x' %}", "chat template: TypeError: no loader for this environment specified"),
        ("{{ 'a' | nothing }}", "chat template, line 1: No filter named 'nothing'."),
    ],
)  # fmt: skip
def test_errors_of_the_template(template: str, expected: str) -> None:
    assert refusal(template).startswith(expected)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__name__ }}",
        "{{ ''['__class__'] }}{{ (''|attr('__class__')).__mro__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ self.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ lipsum(n=1000000000) }}",
    ],
)
def test_no_way_out_of_the_sandbox(template: str) -> None:
    refusal(template)


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "a", "thinking": "b"}]
    render("{% for m in messages %}{% set m = 1 %}{% endfor %}", messages)
    assert messages == [{"role": "user", "content": "a", "thinking": "b"}]


DOUBLING = "{% set x = 'ab' %}" + 60 * "{% set x = EXPRESSION %}" + "{{ x | length }}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99) %}" + 999 * "x" + "{% endfor %}{% endfor %}",
        "{% for a in range(10000000000) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        DOUBLING.replace("EXPRESSION", "x + x"),
        DOUBLING.replace("EXPRESSION", "x ~ x"),
        DOUBLING.replace("EXPRESSION", "x * 2"),
        DOUBLING.replace("EXPRESSION", "[x, x]") + "{{ x }}",
        DOUBLING.replace("EXPRESSION", "(x, x)") + "{{ x | tojson }}",
        DOUBLING.replace("EXPRESSION", "{1: x, 2: x}") + "{{ x | string }}",
        DOUBLING.replace("EXPRESSION", "dict(a=x, b=x)") + "{{ '%s' % x }}",
        DOUBLING.replace("EXPRESSION", "x.replace('a', 'aa').replace('b', 'bb')"),
        DOUBLING.replace("EXPRESSION", "x | replace('a', 'aa') | replace('b', 'bb')"),
        DOUBLING.replace("EXPRESSION", "x.join([x, x])"),
        DOUBLING.replace("EXPRESSION", "[x, x] | join(x)"),
        DOUBLING.replace("EXPRESSION", "'%s%s' % (x, x)"),
        DOUBLING.replace("EXPRESSION", "'{0}{0}'.format(x)"),
        DOUBLING.replace("EXPRESSION", "'%s%s' | format(x, x)"),
        "{% set x = 'ab' %}" + 60 * "{% set x %}{{ x }}{{ x }}{% endset %}" + "{{ x }}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ [1] * 10 ** 12 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a'.center(10 ** 12) }}",
        "{{ 'a'.ljust(width=10 ** 12) }}",
        "{{ 'a' | center(10 ** 12) }}",
        "{{ 'a\nb' | indent(10 ** 12) }}",
        "{{ '\t'.expandtabs(10 ** 12) }}",
        "{{ [1] | tojson(indent=10 ** 12) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ [1] | batch(10 ** 12, 0) | list }}",
        "{{ [1] | slice(10 ** 12) | list }}",
        "{{ ([range(99999) | list] * 9999) | sum(start=[]) | length }}",
        "{% set ns = namespace(x=[]) %}{% for i in range(999) %}{% set ns.x = [ns.x, range(99999) | list] %}"
        "{% endfor %}",
        999 * "{% set xNUMBER = range(99999) | list %}{% set yNUMBER = (range(99999) | list)[:] %}",
        "{{ 5 | _charge }}{{ -999999999 | _charge }}{{ 'a' * 10 ** 9 }}",
        "{{ " + 200_000 * "(",
        "{{ " + 100_000 * "(" + ")" * 100_000 + " }}",
        50_000 * "{% if true %}",
        "{{ " + 50_000 * "-" + "1 }}",
    ],
    ids=lambda template: re.sub(r"\s+", " ", template)[:60],
)  # fmt: skip
def test_hostile_templates_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an error, not by filling time or memory. The limits are smaller here, to test quickly."""
    monkeypatch.setattr(sandbox, "MAX_CHARS", sandbox.MAX_CHARS // 64)
    monkeypatch.setattr(sandbox, "MAX_ITEMS", sandbox.MAX_ITEMS // 64)
    monkeypatch.setattr(sandbox, "MAX_STEPS", sandbox.MAX_STEPS // 64)
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1e9)  # nothing may need the clock
    assert refusal(template).startswith("chat template")


def test_the_clock_is_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", -1.0)
    assert refusal("{{ 1 }}") == "chat template: it takes too many steps"


def test_long_conversations_are_within_the_limits() -> None:
    template = (
        "{%- set ns = namespace(kept=[]) %}{% for m in messages %}{% set ns.kept = ns.kept + [m] %}"
        "{% endfor %}{% for m in ns.kept %}{{ '<|' ~ m.role ~ '|>' + m.content | trim ~ '\n' }}"
        "{% endfor %}"
    )
    messages = 1000 * [{"role": "user", "content": 2000 * "word "}]
    text = render(template, messages)
    assert text == 1000 * ("<|user|>" + (2000 * "word ").strip() + "\n")
    short = 3 * TEMPLATES_BY_NAME["qwen3.qwen3"].read_text("utf-8")
    assert render(short, 1000 * USER).count("user\nHi") == 3000
