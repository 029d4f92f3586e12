"""The targets of `make fuzz` on a few mutated inputs each, the same ones every time, and on what was found before."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import BETWEEN, TARGETS

from gopd.errors import BadInput, RunFailed

Run = Callable[[str, bytes], None]
EXAMPLES = {
    "checkpoint": 12,
    "model": 12,
    "rollouts": 12,
    "metrics": 15,
    "recipe": 20,
    "math": 20,
    "results": 20,
}
"""Fewer for targets whose inputs take milliseconds each."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Gives an input to a target; what is a message to users is none here."""
    checks = {}

    def check(name: str, data: bytes) -> None:
        if name not in checks:
            folder = tmp_path_factory.mktemp(name)
            checks[name] = (TARGETS[name].make(folder), folder)
        with contextlib.suppress(BadInput, RunFailed):
            checks[name][0](data, checks[name][1])

    return check


@functools.cache
def seeds(name: str) -> Sequence[bytes]:
    return TARGETS[name].seeds()


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A seed of a target with up to three spans replaced, by words of its format or by any bytes."""
    data = draw(st.sampled_from(seeds(name)))
    words = st.sampled_from([word.encode() for word in (*TARGETS[name].words, "\0")])
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        data = data[:start] + draw(words | st.binary(max_size=6)) + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_or_refused(run: Run, name: str) -> None:
    @settings(
        derandomize=True,
        max_examples=EXAMPLES.get(name, 40),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(name))
    def check(data: bytes) -> None:
        run(name, data)

    check()


FOUND = {
    "an operator inside an array": ("script", b"x=(a;b)\npython3 -m verl.trainer.main_ppo\n"),
    "a half pair of surrogates": ("jsonl", b'{"prompt": "\\ud800"}'),
    "a timestamp that is none": ("recipe", b"!!timestamp x: 1"),
    "a float that is none": ("recipe", b"a: !!float x"),
    "a hexadecimal number without digits": ("recipe", b"a: 0x_"),
    "a character beyond all": ("recipe", b'a: "\\UFFFFFFFF"'),
    "checksums that are a list": ("checkpoint", b"\x00[]"),
    "versions that are no JSON": ("checkpoint", b"\x03{"),
    "versions that are a list": ("checkpoint", b"\x03[]"),
    "versions that are no UTF-8": ("checkpoint", b"\x03\xff"),
    "a configuration that is null": ("model", b"\x00null"),
    "a tokenizer configuration that is null": ("model", b"\x01null"),
    "a generation configuration that is null": ("model", b"\x02null"),
    "settings that are no JSON": ("results", BETWEEN.join([b"", b"", b"{"])),
    "settings that are no object": ("results", BETWEEN.join([b"", b"", b"3"])),
    "settings without a task": ("results", BETWEEN.join([b"", b"", b"{}"])),
    "settings that are no UTF-8": ("results", BETWEEN.join([b"", b"", b"\xff"])),
    "samples that are no UTF-8": ("results", BETWEEN.join([b"\xff\n", b"", b"{}"])),
    "a reason without a verdict": (
        "results",
        BETWEEN.join([b'{"problem": "1", "sample": 0, "response": "", "reason": "x"}\n', b"", b"{}"]),
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_mended(run: Run, name: str) -> None:
    run(*FOUND[name])


def test_text_in_a_parquet_file_that_is_no_utf8(run: Run) -> None:
    (seed, *_) = seeds("parquet")
    assert b"1+1=" in seed
    run("parquet", seed.replace(b"1+1=", b"1\xff1="))


def test_a_target_that_lets_something_through_is_noticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gopd.data.json.loads", lambda *_: [][0])
    with pytest.raises(IndexError):
        run("jsonl", b"{}")
