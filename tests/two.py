"""Commands run by two processes that work together, on this machine's loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(environment, devices: int, *arguments: object, program: str = "train.py") -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return subprocess.Popen(
        [sys.executable, str(ROOT / program), *map(str, arguments)],
        env=environment | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(environment, *arguments: object, own=((), ()), program: str = "train.py") -> list[tuple[int, str]]:
    """Exit code and log of two processes that work together."""
    meeting = f"127.0.0.1:{port()}"
    running = [
        start(
            *(environment | dict(own[i]), 1, *arguments),
            *("--process", f"{i}/2", "--coordinator", meeting),
            program=program,
        )
        for i in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:  # at once: either may fill its pipe
        told = list(pool.map(lambda process: process.communicate(timeout=300)[1], running))
    return [(process.returncode, text) for process, text in zip(running, told, strict=True)]
