"""Two machines for torchrun: network namespaces joined by a cable that can be pulled. They share one disk."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ADDRESSES = ("10.213.71.1", "10.213.71.2")
INTERFACE = "cable0"  # of each machine


def lacking() -> str | None:
    """Why there can be no such machines here, or None."""
    if shutil.which("ip") is None:
        return "there is no program ip; on Debian: apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    answer = subprocess.run(["ip", "netns", "add", _name(0)], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", _name(0)], capture_output=True)
    return f"network namespaces cannot be made: {answer.stderr.strip()}" if answer.returncode else None


@contextmanager
def two_machines() -> Iterator[None]:
    """Both machines are there for the block."""
    try:
        for number in (0, 1):
            _ip("netns", "add", _name(number))
        _ip("link", "add", INTERFACE, "netns", _name(0), "type", "veth", "peer", "name", INTERFACE, "netns", _name(1))
        for number, address in enumerate(ADDRESSES):
            _ip("-n", _name(number), "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", _name(number), "link", "set", interface, "up")
        yield
    finally:
        for number in (0, 1):
            with suppress(subprocess.CalledProcessError):
                kill(number)
                _ip("netns", "del", _name(number))


def on(number: int, command: list[str]) -> list[str]:
    """The command to run on a machine."""
    return ["ip", "netns", "exec", _name(number), *command]


def pull_cable(number: int) -> None:
    """Nothing that a machine sends arrives any more, not even the end of its connections."""
    _ip("-n", _name(number), "link", "set", INTERFACE, "down")


def kill(number: int) -> None:
    """End all processes of a machine at once."""
    for pid in subprocess.run(["ip", "netns", "pids", _name(number)], capture_output=True, text=True).stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def _name(number: int) -> str:
    return f"machine{number}-{os.getpid()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
