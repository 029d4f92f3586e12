"""Two Ray nodes that are hosts of their own: network namespaces joined by a cable, or loopback addresses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import MARK

PORT = 6399
RAY = Path(sys.executable).with_name("ray")
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass
class Host:
    """A place to run programs in, with an address. `prefix` is put before a command to run it there."""

    address: str
    prefix: Sequence[str]
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))

    def start(self, *command: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Starts a program there, in a process group of its own."""
        process = subprocess.Popen(
            [*self.prefix, *map(str, command)],
            env=os.environ | self.environment,
            start_new_session=True,
            **options,
        )
        self.processes.append(process)
        return process

    def start_ray(self, cores: int, head: Host | None = None) -> None:
        """Makes it a node of Ray: the head of a cluster, or one more in the cluster of a head."""
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if head is not None:
            role = [f"--address={head.address}:{PORT}"]
        self.start(
            RAY,
            "start",
            "--block",
            *role,
            f"--node-ip-address={self.address}",
            f"--num-cpus={cores}",
            "--object-store-memory=300000000",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """Kills everything that was started there, at once, as when the host loses power."""
        for process in self.processes:
            for pid in [process.pid, *_descendants(process.pid)]:
                _kill(pid)
            process.wait()
        self.processes.clear()


def _descendants(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [p for child in map(int, found) for p in (child, *_descendants(child))]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts: in network namespaces where this process may make them, else on the loopback device."""
    with ExitStack() as stack:
        if os.geteuid() == 0 and shutil.which("ip") is not None:
            hosts = stack.enter_context(_namespaces())
        else:
            hosts = (Host("127.0.0.1", ()), Host("127.0.0.2", ()))
        for host in hosts:
            stack.callback(host.end)
        yield hosts


@contextmanager
def _namespaces() -> Iterator[tuple[Host, Host]]:
    names = [f"gopd-{os.getpid()}-{i}" for i in range(2)]
    addresses = ["10.77.0.1", "10.77.0.2"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
        ip(
            "link",
            "add",
            "gopd0",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "gopd0",
            "netns",
            names[1],
        )
        for name, address in zip(names, addresses, strict=True):
            inside = ("-n", name)
            ip(*inside, "addr", "add", f"{address}/24", "dev", "gopd0")
            for device in ("lo", "gopd0"):
                ip(*inside, "link", "set", device, "up")
        yield (
            Host(addresses[0], ("ip", "netns", "exec", names[0])),
            Host(addresses[1], ("ip", "netns", "exec", names[1])),
        )


@contextmanager
def two_nodes(cores: int, mark: str = "") -> Iterator[tuple[Host, Host]]:
    """A Ray cluster of two nodes with so many logical cores each; the first is its head, where the driver belongs.

    `mark` is what `processes.Run` finds a run's processes by: actors are children of their node.
    """
    with two_hosts() as (head, other):
        for host in (head, other):
            host.environment[MARK] = mark
        head.start_ray(cores)
        wait_for_nodes(head, 1)
        other.start_ray(cores, head)
        wait_for_nodes(head, 2)
        yield head, other


def wait_for_nodes(head: Host, count: int, seconds: float = 60.0) -> None:
    """Until the cluster has so many nodes."""
    address = f"{head.address}:{PORT}"
    program = (
        "import ray, sys, logging\n"
        f"ray.init(address={address!r}, log_to_driver=False, logging_level=logging.ERROR)\n"
        f"sys.exit(sum(n['Alive'] for n in ray.nodes()) != {count})"
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process = head.start(
            sys.executable, "-c", program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        code = process.wait()
        head.processes.remove(process)
        if code == 0:
            return
        time.sleep(1)
    raise TimeoutError(f"no {count} Ray nodes at {address} after {seconds:.0f} s")
