"""`diffrestorer app`: what keeps it from starting is one sentence. The page itself: tests/app."""

import socket
import sys
from pathlib import Path

import pytest

from diffrestorer.cli import main


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("diffrestorer.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)  # as where it is not installed
    assert main(["app"]) == 2
    assert (
        capfd.readouterr().err
        == 'diffrestorer: the web page needs Gradio: pip install "diffrestorer[app]"\n'
    )


def test_a_port_that_is_taken(random_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--model", str(random_model), "--device", "cpu", "--port", str(port)]) == 2
    sentence = f"can't listen on 127.0.0.1, port {port}; choose another with --host or --port"
    assert capfd.readouterr().err == f"diffrestorer: {sentence}\n"
