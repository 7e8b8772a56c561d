"""Read what an offline run of Weights & Biases wrote: records in LevelDB's log format, which `wandb sync` sends."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER = 7
"""Bytes of the file's header, and of each chunk's: checksum, length, kind."""
BLOCK = 1 << 15
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a `run-ID.wandb` file."""
    data = path.read_bytes()
    position, message = HEADER, b""
    while position + HEADER <= len(data):
        # A block ends with padding where no header fits.
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue

        _, length, kind = struct.unpack_from("<IHB", data, position)
        assert kind in (FULL, FIRST, MIDDLE, LAST), (path, position, kind)
        position += HEADER
        message += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(message)
            message = b""
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run that were logged, by key; wandb's own keys are left out."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            # An image is several items below one key.
            key = item.key or item.nested_key[0]
            if not key.startswith("_"):
                row[key] = json.loads(item.value_json)
        rows.append(row)
    return rows


def config(path: Path) -> dict[str, Any]:
    """Return the configuration that a run was opened with."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "run":
            for update in record.run.config.update:
                found[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return found


def is_complete(path: Path) -> bool:
    """Return whether the run's end is in the file: wandb's own process writes it, after the run's."""
    return any(record.WhichOneof("record_type") == "exit" for record in records(path))
