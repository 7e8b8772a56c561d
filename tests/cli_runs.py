"""`diffrestorer` in processes of their own, as users start it: forks of a server that has imported the libraries."""

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from training_runs import context


def _run(arguments: Sequence[str], log: str, environment: Mapping[str, str]) -> None:
    from diffrestorer.cli import main

    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ |= environment
    tempfile.tempdir = None  # reads TMPDIR anew
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job is started deaf to it
    sys.exit(main(arguments))


def start(arguments: Sequence[str], log: Path, **environment: str) -> BaseProcess:
    """Starts `diffrestorer ARGUMENTS`; what it says goes to `log`."""
    process = context.Process(target=_run, args=(list(arguments), str(log), environment))
    process.start()
    return process


def start_ranks(arguments: Sequence[str], log: Path, count: int) -> list[BaseProcess]:
    """Starts `diffrestorer ARGUMENTS` in several processes, with the environment that torchrun gives each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start(arguments, log, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)
    ]


def wait(process: BaseProcess, timeout: float = 1800) -> int:
    """The exit status."""
    process.join(timeout)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode
