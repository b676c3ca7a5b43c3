"""The errors that a user can mend, each one paragraph: what was found, what was expected, what to do.

TagsmithError
 +-- DataError       a file, a column, a label, a text
 +-- SettingError    an option or a configuration
 +-- AssetError      weights or a data set that could not be had or verified
 +-- BundleError     a saved bundle that is absent, altered or of another version
 +-- ResourceError   disk or memory that does not suffice
"""

from __future__ import annotations

import re


class TagsmithError(Exception):
    """Anything that the user can mend; the command line shows it as one paragraph and exits with `exit_code`."""

    exit_code = 3


class DataError(TagsmithError):
    """The table cannot be used as it is: a missing file, a wrong column, a single label."""


class SettingError(TagsmithError):
    """An option that is unknown, out of range, or at odds with another one or with the model."""


class AssetError(TagsmithError):
    """Weights or a data set that could not be fetched, or whose SHA-256 is not the expected one."""


class BundleError(TagsmithError):
    """A bundle that is absent, incomplete, altered, or of a format version unknown to this release."""


class ResourceError(TagsmithError):
    """Disk or memory that does not suffice; nothing was left half written."""


def disk_errno(error: Exception) -> int | None:
    """The number of the operating system's error; safetensors wraps its own, with the number in the message alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; PyTorch says so in words of its own, by device."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in told for words in _OUT_OF_MEMORY)
    )


_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "bad_alloc")
