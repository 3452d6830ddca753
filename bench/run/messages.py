"""What a job tells its parent, through a pipe: one line of JSON for each step's progress, and one for the whole sample.

    send(handle, progress)          # in the job
    inbox = Inbox(handle); inbox.read(); inbox.progress, inbox.final        # in the parent

A job runs code of others, which may write anything into any open file. Nothing that arrives is executed, a line that is no
message is counted and passed over, and half a message with silence after it holds nobody up.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from pydantic import TypeAdapter

from vrambench.bench.measure.progress import Progress
from vrambench.bench.results.records import Sample

LONGEST = 64 * 2**20
"""Bytes of a line; a sample of thousands of steps has one."""
AT_ONCE = 16 * 2**20
"""Bytes that are read before the parent looks at other jobs."""

_PROGRESS = TypeAdapter(Progress)


def send(handle: int, said: Progress | Sample) -> None:
    """Writes a message to a pipe."""
    kind, content = (
        ("sample", said.model_dump()) if isinstance(said, Sample) else ("progress", _PROGRESS.dump_python(said))
    )
    line = memoryview(json.dumps({kind: content}).encode() + b"\n")
    while line:
        line = line[os.write(handle, line) :]


class Inbox:
    """What has arrived through a pipe, which is read without waiting. `closed`: nothing more will come."""

    def __init__(self, handle: int) -> None:
        os.set_blocking(handle, False)
        self.progress: list[Progress] = []
        self.final: Sample | None = None
        self.garbled = 0
        self.closed = False
        self._handle = handle
        self._half = bytearray()

    def read(self) -> None:
        """Takes what is there."""
        taken = 0
        while not self.closed and taken < AT_ONCE:
            try:
                data = os.read(self._handle, 2**20)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self.closed = not data
            taken += len(data)
            self._half += data
            *lines, self._half = self._half.split(b"\n") if b"\n" in data else [self._half]
            for line in lines:
                self._take(line)
            if len(self._half) > LONGEST:
                self._half.clear()
                self.garbled += 1
        if self.closed and self._half:  # the rest of a message that never came
            self._half.clear()
            self.garbled += 1

    def _take(self, line: bytearray) -> None:
        with contextlib.suppress(ValueError, RecursionError):
            message: Any = json.loads(line)
            if isinstance(message, dict) and "sample" in message:
                self.final = Sample.model_validate(message["sample"])
                return
            if isinstance(message, dict) and "progress" in message:
                self.progress.append(_PROGRESS.validate_python(message["progress"]))
                return
        self.garbled += 1
