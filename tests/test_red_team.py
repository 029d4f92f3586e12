"""The second battery of attack programs, judged from outside: root and nobody, each isolation, at full pool load.

`red_team/` holds the programs; `python -m red_team.battery ISOLATION` runs them by hand.
"""

from __future__ import annotations

import json
import os
import platform
import random
import string
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gopd.sandbox import Isolation, Limits, layers, process
from gopd.sandbox.process import launch
from red_team import forge
from red_team.attack import Attack
from red_team.battery import ATTACKS, name, one_by_one, side_by_side
from red_team.many import many
from red_team.nobody import as_nobody
from red_team.witness import World, children

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the attacks know the system calls of x86-64 by their numbers"
)
ISOLATIONS: tuple[Isolation, ...] = ("namespaces", "landlock")
SLOW = [
    one
    for one in ATTACKS
    if one.theme == "exhaust" or one.name in ("timer-off", "endless-list", "million-digits")
]
"""Those that go on until a limit ends them."""
QUICK = [one for one in ATTACKS if one not in SLOW]
TURNS = [(ISOLATIONS[number % 2], one) for number, one in enumerate(SLOW)]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
    reason="only root, and where there are mount namespaces, can become nobody",
)


@pytest.fixture(scope="module", params=ISOLATIONS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with World(request.param) as made:
        yield made


def test_the_battery_is_complete() -> None:
    themes = Counter(one.theme for one in ATTACKS)
    assert len(ATTACKS) >= 60
    assert set(themes) == {"forge", "read", "escape", "exhaust", "persist", "talk"}
    assert len({name(one) for one in ATTACKS}) == len(ATTACKS)
    for one in ATTACKS:
        assert one.tries
        assert one.ends
        compile(one.text.replace("$", ""), one.name, "exec")


def test_honest_programs_are_right(world: World) -> None:
    """Else nothing could be forged, and the attacks below would show nothing."""
    assert world.honest() == ("right", "right")
    world.outcomes.clear()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_a_program_that_is_over_before_its_caller_looks_leaves_no_zombie(
    isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine; the caller adopts what loses its parent."""
    in_time = process._wait_for_start

    def late(started: subprocess.Popen[bytes], starting: int) -> float:
        moment = in_time(started, starting)
        time.sleep(0.5)
        return moment

    with World(isolation) as world:
        monkeypatch.setattr(process, "_wait_for_start", late)
        before = set(children())
        assert launch(isolation, "pass", b"", Limits()).status == "ok"
        assert set(children()) <= before
        assert world.found() == []


@pytest.mark.parametrize("attack", QUICK, ids=name)
def test_nothing_gets_through(world: World, attack: Attack) -> None:
    assert world.play(attack) + world.found() == []


@pytest.mark.parametrize(("isolation", "attack"), TURNS, ids=[name(attack) for _, attack in TURNS])
def test_limits_end_what_does_not_end(isolation: Isolation, attack: Attack) -> None:
    """In one isolation each; nightly in both."""
    assert not _wrong(one_by_one(isolation, [attack]))


@needs_root
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_nothing_gets_through_for_nobody(isolation: Isolation) -> None:
    themes = [word for theme in ("read", "escape", "persist", "talk") for word in ("--theme", theme)]
    done = as_nobody("red_team.battery", isolation, *themes)
    assert (done.returncode, done.stdout.strip()) == (0, "{}"), done.stderr + done.stdout


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_nothing_gets_through_at_full_load(isolation: Isolation) -> None:
    """From as many threads as grade, so that attacks have neighbours; nightly all of them, many at a time."""
    attacks = random.Random(0).sample(QUICK, 30)
    assert not _wrong(side_by_side(isolation, attacks, os.cpu_count() or 1))


def _wrong(found: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: wrong for name, wrong in found.items() if wrong}


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_where_this_package_is_no_program_reads(
    isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should it be installed where programs read: its data holds the answers to its own problems."""
    hidden = str(Path(json.__file__).resolve().parent)
    monkeypatch.setattr(layers, "hidden", lambda: hidden)
    layers._bubblewrap.cache_clear()
    code = "import string, os\nprint(open(string.__file__).read() != '')\nopen('$file')"
    outcome = launch(isolation, string.Template(code).substitute(file=json.__file__), b"", Limits())
    layers._bubblewrap.cache_clear()
    assert outcome.stdout == b"True\n"
    assert b"FileNotFoundError" in outcome.stderr or b"PermissionError" in outcome.stderr


@needs_root
@pytest.mark.skipif(layers.most_threads("namespaces") < 0, reason="this kernel counts all threads of a user")
def test_threads_are_limited_for_nobody() -> None:
    """Root's are not: the kernel exempts root."""
    done = as_nobody("red_team.threads")
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) <= layers._THREADS


@pytest.mark.nightly
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_everything_by_turns(isolation: Isolation) -> None:
    assert not _wrong(one_by_one(isolation, ATTACKS))


@pytest.mark.nightly
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_everything_side_by_side(isolation: Isolation) -> None:
    """Four times as many threads as grade, every attack three times."""
    attacks = random.Random(1).sample(ATTACKS * 3, len(ATTACKS) * 3)
    assert not _wrong(side_by_side(isolation, attacks, 4 * (os.cpu_count() or 1)))


@pytest.mark.nightly
@needs_root
@pytest.mark.parametrize("threads", ["0", "4"])
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_everything_for_nobody(isolation: Isolation, threads: str) -> None:
    done = as_nobody("red_team.battery", isolation, "--threads", threads)
    assert (done.returncode, done.stdout.strip()) == (0, "{}"), done.stderr + done.stdout


@pytest.mark.nightly
def test_verdicts_are_not_forged_even_without_isolation() -> None:
    assert not _wrong(one_by_one("none", forge.ATTACKS))


@pytest.mark.nightly
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_ten_thousand_runs_leave_nothing_behind(isolation: Isolation) -> None:
    figures = many(10_000, isolation)
    before, after = dict(figures["before"]), dict(figures["after"])  # type: ignore[call-overload]
    grown = after.pop("resident bytes") - before.pop("resident bytes")
    for machine in ("shared memory files",):  # others use it too
        before.pop(machine), after.pop(machine)
    assert figures["wrong"] == []
    assert after == before
    assert grown < 1 << 25
