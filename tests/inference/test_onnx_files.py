"""An export is whole or not there: whatever kills it, the folder holds the one before or the new one."""

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from soaking import some_now

from diffrestorer.data.ownership import own_folder
from diffrestorer.inference.onnx_files import FILE_NAME, save_whole

FORK = multiprocessing.get_context("fork")
SIZE = 4096


def export(number: float, folder: Path, external: bool) -> None:
    """Exports a graph that adds a number, held in a few thousand weights, to its input."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [SIZE]) for name in "xy"]
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    weights = onnx.numpy_helper.from_array(np.full(SIZE, number, np.float32), "w")
    graph = onnx.helper.make_graph([node], "add", values[:1], values[1:], [weights])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)

    def save(path: Path) -> None:
        location = f"{path.name}.data"
        onnx.save(model, path, save_as_external_data=external, location=location, size_threshold=0)

    save_whole(save, folder)


def number_in(folder: Path) -> float:
    """What the exported graph adds, as onnxruntime computes it; it must be one number throughout."""
    session = onnxruntime.InferenceSession(folder / FILE_NAME)
    (answer,) = session.run(None, {"x": np.zeros(SIZE, np.float32)})
    assert np.all(answer == answer[0])
    return float(answer[0])


def in_a_process(function: Callable[[], object]) -> int | None:
    """Runs a function in a fork, and returns its exit status; negative: the signal that killed it."""
    process = FORK.Process(target=function)
    process.start()
    process.join(600)
    return process.exitcode


def export_until(folder: Path, external: bool, call: str, number: int) -> None:
    """Exports 2, and is killed in its `number`th call of a function of `os`."""
    real, calls = getattr(os, call), []

    def counted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(os, call, counted)
    export(2, folder, external)


@pytest.mark.parametrize(("first", "second"), some_now(product([False, True], [True, False]), 1))
def test_a_kill_at_any_step_leaves_a_whole_export(first: bool, second: bool, tmp_path: Path) -> None:
    steps = [(call, number) for call in ("fsync", "replace", "unlink") for number in (1, 2)]
    found = []
    for call, number in steps:
        folder = tmp_path / f"{call}-{number}"
        export(1, folder, first)
        killed = in_a_process(lambda: export_until(folder, second, call, number))  # noqa: B023 - runs at once
        assert killed in (0, -signal.SIGKILL)
        found.append(number_in(folder))
        assert found[-1] == 1 or call == "unlink" or killed == 0

        # The next export finds its folder free, and leaves nothing of the others.
        export(3, folder, second)
        assert number_in(folder) == 3
        assert len(list(folder.iterdir())) == 1 + second
    assert set(found) == {1, 2}


def export_with_little_disk(folder: Path, external: bool, answer: Path) -> None:
    """No file may be larger than this, which a write learns as it learns that a disk is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
    try:
        export(2, folder, external)
    except OSError as error:
        answer.write_text(str(error.errno))


@pytest.mark.parametrize("external", [False, True], ids=["one file", "two files"])
def test_a_full_disk_leaves_the_old_export_alone(external: bool, tmp_path: Path) -> None:
    folder, answer = tmp_path / "out", tmp_path / "answer"
    export(1, folder, external)
    before = sorted(folder.iterdir())
    assert in_a_process(lambda: export_with_little_disk(folder, external, answer)) == 0
    assert answer.read_text() == str(errno.EFBIG)
    assert sorted(folder.iterdir()) == before
    assert number_in(folder) == 1


def test_two_exports_into_one_folder(tmp_path: Path) -> None:
    def refused() -> None:
        with pytest.raises(
            ValueError, match=r"is in use by process .*: wait for its end, or choose another"
        ):
            export(2, tmp_path, True)

    export(1, tmp_path, True)
    with own_folder(tmp_path, remove=True):
        assert in_a_process(refused) == 0
    assert number_in(tmp_path) == 1


def test_an_export_removes_only_its_own_weights_that_no_graph_names(tmp_path: Path) -> None:
    # An earlier export that its owner keeps, and files that look like ours.
    export(1, tmp_path, True)
    (weights,) = tmp_path.glob("*.data")
    kept = (tmp_path / FILE_NAME).rename(tmp_path / "kept.onnx")
    others = ["restorer-old-model.onnx.data", "restorer.onnx.data", "restorer-0123456789abcdef.data"]
    for name in (*others, "restorer-0123456789abcdef.onnx.data"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "restorer-old-model.onnx").write_bytes(b"location restorer-old-model.onnx.data")
    (tmp_path / "empty.onnx").touch()

    for number in (2, 3):
        export(number, tmp_path, True)
        found = {file.name for file in tmp_path.glob("*.data")}
        assert {*others, weights.name} < found
        assert len(found) == len(others) + 2, "ours that no graph names are gone"
        assert number_in(tmp_path) == number
    kept.replace(tmp_path / FILE_NAME)
    assert number_in(tmp_path) == 1
    export(4, tmp_path, False)
    assert {file.name for file in tmp_path.glob("*.data")} == {*others}

    # What a graph that can't be read needs is not known.
    export(5, tmp_path, True)
    os.mkfifo(tmp_path / "pipe.onnx")
    export(6, tmp_path, True)
    assert len(list(tmp_path.glob("*.data"))) == len(others) + 2
