"""Models and sessions: shapes, views, forks, files and their agreement with an oracle's logits."""

from __future__ import annotations

import gc
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import kvengine as kv

TOKENS = [5, 17, 40, 99, 3, 250, 8, 61, 12, 77]


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of additions: products of one row and of several use other kernels.

    Logits of the tiny model range over about 10; float32 has 7 digits.
    """
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_model_facts(tiny: kv.Model, tiny_path: Path) -> None:
    assert tiny.architecture == "llama"
    assert tiny.n_layers == len(tiny.layers) > 0
    assert tiny.layers[0]["n_heads"] % tiny.layers[0]["n_kv_heads"] == 0
    assert tiny.vocab_size == tiny.file.tensor("token_embd.weight").shape[1]
    assert tiny.n_ctx == tiny.file["llama.context_length"]
    assert tiny.tokenizer.vocab_size <= tiny.vocab_size
    assert tiny.threads == 2
    assert tiny.backend.startswith("cpu-")
    assert tiny.chat_template == ""
    assert tiny.path == tiny_path
    assert "llama" in repr(tiny)


def test_logits_agree_with_the_oracle(tiny: kv.Model, tiny_path: Path) -> None:
    ids = np.load(tiny_path.with_suffix(".ids.npy"))
    expected = np.load(tiny_path.with_suffix(".logits.npy"))
    logits = tiny.session(cache="f32", exact=True).forward(ids, all_logits=True)
    # Two float32 implementations that add up in different orders.
    tolerance = 1e-4 * (expected.max() - expected.min())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


def test_forward_shapes(tiny: kv.Model) -> None:
    session = tiny.session()
    assert session.last_logits is None
    last = session.forward(TOKENS)
    assert last.shape == (1, tiny.vocab_size)
    assert last.dtype == np.float32
    assert session.tokens == TOKENS
    assert session.n_tokens == len(TOKENS)
    rows = tiny.session().forward(TOKENS, all_logits=True)
    assert rows.shape == (len(TOKENS), tiny.vocab_size)
    assert_same(rows[-1:], last)
    np.testing.assert_array_equal(session.last_logits, last)


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda t: np.array(t, dtype=np.uint16)])
def test_tokens_may_be_any_sequence_of_integers(tiny: kv.Model, kind: type) -> None:
    session = tiny.session()
    session.forward(kind(TOKENS))
    assert session.tokens == TOKENS


@pytest.mark.parametrize("bad", [[1.5], ["a"], [None], 5, None, np.array([[1, 2]]), {1: 2}.items()])
def test_other_tokens_are_refused(tiny: kv.Model, bad: object) -> None:
    with pytest.raises((TypeError, kv.ConfigError)):
        tiny.session().forward(bad)


@pytest.mark.parametrize("bad", [[], [-1], [10**6], [2**40], [-(2**70)]])
def test_unknown_tokens_are_refused(tiny: kv.Model, bad: list[int]) -> None:
    session = tiny.session()
    with pytest.raises(kv.ConfigError):
        session.forward(bad)
    assert session.n_tokens == 0


def test_logits_are_read_only_views(tiny: kv.Model) -> None:
    logits = tiny.session().forward(TOKENS)
    assert not logits.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        logits[0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        logits.flags.writeable = True


def test_a_view_never_changes_and_outlives_its_session(tiny: kv.Model) -> None:
    session = tiny.session()
    first = session.forward(TOKENS)
    copy = first.copy()
    second = session.forward([1])
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, copy)
    del session, second
    gc.collect()
    np.testing.assert_array_equal(first, copy)


def test_two_buffers_are_reused_in_turn_when_nobody_looks(tiny: kv.Model) -> None:
    """Two, because the last logits have to survive a forward pass that fails."""
    session = tiny.session()

    def address() -> int:
        return session.forward([1]).__array_interface__["data"][0]

    addresses = []
    for _ in range(6):
        addresses.append(address())
        gc.collect()
    assert addresses[0::2] == [addresses[0]] * 3
    assert addresses[1::2] == [addresses[1]] * 3


def test_a_session_keeps_its_model_alive(tiny_path: Path) -> None:
    session = kv.Model.load(tiny_path, threads=1).session()
    tokenizer = session.model.tokenizer
    gc.collect()
    assert session.forward(TOKENS).shape[0] == 1
    del session
    gc.collect()
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_results_do_not_depend_on_threads(tiny: kv.Model, tiny_path: Path, threads: int) -> None:
    other = kv.Model.load(tiny_path, threads=threads)
    assert other.threads == threads
    np.testing.assert_array_equal(
        other.session(cache="int4:group=8,tail=4").forward(TOKENS * 10, all_logits=True),
        tiny.session(cache="int4:group=8,tail=4").forward(TOKENS * 10, all_logits=True),
    )


def test_truncate_equals_never_having_read(tiny: kv.Model) -> None:
    session = tiny.session(exact=True)
    session.forward(TOKENS)
    session.truncate(4)
    assert session.tokens == TOKENS[:4]
    assert session.last_logits is None
    fresh = tiny.session(exact=True)
    fresh.forward(TOKENS[:4])
    assert_same(session.forward([9]), fresh.forward([9]))


@pytest.mark.parametrize("n", [-1, len(TOKENS) + 1])
def test_truncate_refuses_other_lengths(tiny: kv.Model, n: int) -> None:
    session = tiny.session()
    session.forward(TOKENS)
    with pytest.raises(kv.ConfigError):
        session.truncate(n)
    assert session.tokens == TOKENS


def test_a_fork_goes_its_own_way(tiny: kv.Model) -> None:
    session = tiny.session(cache="int8:group=8,tail=4")
    session.forward(TOKENS * 8)
    branch = session.fork()
    assert isinstance(branch, kv.Session)
    assert branch.model is session.model
    branch.forward([1])
    assert session.n_tokens + 1 == branch.n_tokens
    np.testing.assert_array_equal(session.forward([1]), branch.last_logits)


def test_reuse_prefix(tiny: kv.Model) -> None:
    session = tiny.session()
    session.forward(TOKENS)
    assert session.reuse_prefix([*TOKENS[:5], 1, 2]) == 5
    assert session.tokens == TOKENS[:5]
    assert session.reuse_prefix(TOKENS[:5]) == 4  # one is left to be read


def test_capacity(tiny: kv.Model) -> None:
    session = tiny.session(n_ctx=len(TOKENS))
    session.forward(TOKENS)
    with pytest.raises(kv.CapacityError):
        session.forward([1])
    assert session.tokens == TOKENS


def test_save_and_restore_go_on_bit_identically(tiny: kv.Model, tmp_path: Path) -> None:
    session = tiny.session(n_ctx=200, cache="int4:group=8,tail=4")
    session.forward(TOKENS * 8)
    path = tmp_path / "session.kv"
    session.save(path)
    restored = tiny.restore(path)
    assert restored.tokens == session.tokens
    assert restored.n_ctx == session.n_ctx
    assert restored.cache.spec == session.cache.spec
    np.testing.assert_array_equal(restored.last_logits, session.last_logits)
    np.testing.assert_array_equal(restored.forward([1, 2]), session.forward([1, 2]))


def test_damaged_sessions_are_refused(tiny: kv.Model, tiny_chat: kv.Model, tmp_path: Path) -> None:
    session = tiny.session()
    session.forward(TOKENS)
    path = tmp_path / "session.kv"
    session.save(path)
    data = path.read_bytes()
    with pytest.raises(kv.ConfigError):  # another model's
        tiny_chat.restore(path)
    for damaged in (data[:-1], data[: len(data) // 2], data[:3], b"", data + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(kv.FormatError):
            tiny.restore(path)
    for position in range(0, len(data), max(1, len(data) // 50)):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(kv.Error):
            tiny.restore(path)
    with pytest.raises(kv.IoError):
        tiny.restore(tmp_path / "absent")


@pytest.mark.parametrize(
    "options", [{"n_ctx": -1}, {"n_ctx": 2**30}, {"n_batch": -1}, {"cache": "?"}, {"cache": ""}]
)
def test_bad_options(tiny: kv.Model, options: dict) -> None:
    with pytest.raises(kv.ConfigError):
        tiny.session(**options)


def test_progress_reports_every_chunk(tiny: kv.Model) -> None:
    seen = []
    tiny.session(n_batch=4).forward(TOKENS, progress=lambda *now: seen.append(now))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_progress_may_cancel(tiny: kv.Model) -> None:
    session = tiny.session(n_batch=4)
    with pytest.raises(kv.CancelledError):
        session.forward(TOKENS, progress=lambda done, total: done < 8)
    assert session.tokens == TOKENS[:8]
    fresh = tiny.session(n_batch=4)
    fresh.forward(TOKENS)
    np.testing.assert_array_equal(session.forward(TOKENS[8:]), fresh.last_logits)


def test_what_a_progress_callback_raises_comes_through(tiny: kv.Model) -> None:
    def fail(done: int, total: int) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        tiny.session(n_batch=4).forward(TOKENS, progress=fail)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_long_call(tiny: kv.Model) -> None:
    session = tiny.session(n_batch=1)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        session.forward(TOKENS, progress=interrupt)
    assert 3 <= session.n_tokens < len(TOKENS)
    assert session.forward([1]).shape[0] == 1


def test_one_caller_at_a_time(tiny: kv.Model) -> None:
    session = tiny.session(n_batch=4)
    with pytest.raises(kv.ConfigError, match="in use"):
        session.forward(TOKENS, progress=lambda *_: session.n_tokens)


def test_sessions_of_one_model_in_several_threads(tiny: kv.Model) -> None:
    expected = tiny.session().forward(TOKENS * 5)
    results: list[np.ndarray] = []

    def work() -> None:
        for _ in range(5):
            results.append(tiny.session().forward(TOKENS * 5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        np.testing.assert_array_equal(result, expected)
