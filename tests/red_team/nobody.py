"""Running a module as nobody, by root: in a mount namespace of its own, where that user can get at Python."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NOBODY = "65534"


def as_nobody(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module arguments` as nobody. The machine's own mounts are not touched."""
    needed = [os.path.realpath(sys.base_prefix), sys.prefix, str(ROOT)]
    closed = {folder for path in needed if (folder := _closed(Path(path))) is not None}
    lines = ["set -e", "mount -t tmpfs -o mode=755 none /mnt"]
    for number, path in enumerate(needed):
        lines += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(path)} /mnt/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(folder))}" for folder in sorted(closed)]
    for number, path in enumerate(needed):
        if _closed(Path(path)) is not None:
            lines += [f"mkdir -p {shlex.quote(path)}", f"mount --move /mnt/{number} {shlex.quote(path)}"]
    lines.append(f'exec setpriv --reuid {_NOBODY} --regid {_NOBODY} --clear-groups "$@"')
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh"]
    environment = {
        **{
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
        },
        **{name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_"))},
    }
    return subprocess.run(
        [*command, sys.executable, "-B", "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd="/",
    )


def _closed(path: Path) -> Path | None:
    """The topmost folder above that others may not enter."""
    above = [folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001]
    return above[0] if above else None
