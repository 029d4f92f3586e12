"""Asks pip-audit for known vulnerabilities of what locks/ pins: `python tools/audit.py PIP_AUDIT`.

Exit code 1 where there are any. Where the data cannot be reached, says NOT AUDITED and why, with exit code 0: a machine
without that network must not fail its tests for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).resolve().parent.parent / "locks"


def main(program: str) -> int:
    """Audits and returns the exit code."""
    files = [word for path in sorted(LOCKS.glob("*.txt")) for word in ("--requirement", str(path))]
    command = [
        program,
        "--disable-pip",
        "--require-hashes",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        *files,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return _not_audited(
            f"pip-audit gave no answer (exit code {done.returncode}): {done.stderr.strip()[-300:]}"
        )
    asked = [package for package in packages if "skip_reason" not in package]
    skipped = [package for package in packages if "skip_reason" in package]
    for package in asked:
        for found in package["vulns"]:
            print(f"{package['name']} {package['version']}: {found['id']}, mended in {found['fix_versions']}")
    vulnerable = sum(bool(package["vulns"]) for package in asked)
    print(f"audited: {len(asked)} of {len(packages)} packages; vulnerable: {vulnerable}")
    if skipped:
        _not_audited(f"{len(skipped)} packages, e.g. {skipped[0]['name']}: {skipped[0]['skip_reason']}")
    return 1 if vulnerable else 0


def _not_audited(why: str) -> int:
    print(f"\n!!! NOT AUDITED: {why}\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
