"""Python's garbage collector, held still while something is measured.

    with collector_held():
        ...                 # memory is freed where its last user lets go of it, and nowhere else

A collection ends the lives of cycles at moments that differ from run to run, and peaks with them.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_held(*, collect: bool = True) -> Iterator[None]:
    """Collects what is there, unless that is not asked for, then not until the end; the collector is left as it was found."""
    collects = gc.isenabled()
    if collect:
        gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
