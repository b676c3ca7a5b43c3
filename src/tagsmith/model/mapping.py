"""Arrays in files that are mapped into memory: what was read or written of them need not stay there."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

from torch import Tensor

WINDOW = 16 * mmap.PAGESIZE
"""Linux maps up to so much around a page that is touched, if the file is in its cache."""


def let_go(part: Tensor) -> None:
    """Take the pages under a part of a mapped file out of this process's memory; they stay in the file.

    They count as memory of the process, though the system could drop them at any time: a pass over 10 GiB of states
    would look like, and in a container with a limit be treated as, 10 GiB of memory. Tensors in plain memory are left
    alone.
    """
    storage = part.untyped_storage()
    if storage.filename is None:
        return
    first, last = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    start = max(first, part.data_ptr() // WINDOW * WINDOW)
    stop = min(last, -(-(part.data_ptr() + part.nbytes) // WINDOW) * WINDOW)
    with contextlib.suppress(OSError, AttributeError):  # a wish: systems without it keep the pages
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _DONTNEED)


_DONTNEED = 4  # sys/mman.h, on Linux and macOS
