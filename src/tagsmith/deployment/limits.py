"""What a server lets in: hosts, keys, and how much of everything."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagsmith.config import DeploymentConfig
from tagsmith.errors import SettingError

LETTERS_PER_TOKEN = 250
"""A text of more letters than this times the tokens that are read is refused before it is tokenised."""

TEXTS_WITHOUT_LIMIT = 64_000
"""Letters of a text where the classifier reads any number of tokens."""

HEADERS_S, BODY_S = 10.0, 30.0
"""How long a client may take for its headers, and for its body or between two lines of a stream."""

MOST_HEADER_BYTES = 64 * 1024
MOST_CONNECTIONS = 4096
MOST_LINE_BYTES = 1_000_000
QUEUED_TEXTS_OF_FULL_LENGTH = 128
OPEN_ROUTES = frozenset({"/health", "/ready", "/ping", "/ui"})
"""What answers without a key: whether the server lives, and the shell of the page, which asks for a key itself."""

_ANY = 2**31
_LEAST_KEY = 16
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """The limits of one server. Letters and queue depend on how much the classifier reads."""

    body_bytes: int
    texts: int
    letters: int
    queue_texts: int
    queue_tokens: int
    batch_tokens: int
    max_wait_s: float
    timeout_s: float
    drain_s: float

    @classmethod
    def of(cls, config: DeploymentConfig, *, max_tokens: int | None) -> Limits:
        """The limits that settings and a classifier's length come to."""
        # An engine that reads texts of any length (TF-IDF) is bounded by texts: its terms cost next to nothing.
        room = _ANY if max_tokens is None else QUEUED_TEXTS_OF_FULL_LENGTH * max_tokens
        return cls(
            body_bytes=config.max_body_bytes,
            texts=config.max_texts,
            letters=TEXTS_WITHOUT_LIMIT if max_tokens is None else LETTERS_PER_TOKEN * max_tokens,
            queue_texts=config.queue_texts,
            queue_tokens=room,
            batch_tokens=_ANY if max_tokens is None else config.batch_tokens,
            max_wait_s=config.max_wait_ms / 1000,
            timeout_s=config.timeout_s,
            drain_s=config.drain_s,
        )


class Keys:
    """Named keys. They are compared as digests in constant time, and all of them, whichever fits."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, given: str | None) -> str | None:
        """The name of the key that was given, None where it is none of these."""
        digest = _digest(given or "")
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found if given else None

    @classmethod
    def of(cls, path: Path | None, *, environment: str | None) -> Keys:
        """The keys of a file, where there is one, and one of the environment, named so."""
        keys = {} if path is None else _read_keys(path)
        if environment:
            if len(environment) < _LEAST_KEY:
                raise SettingError(
                    f"The key in TAGSMITH_API_KEY has {len(environment)} letters. Expected at least {_LEAST_KEY}; make "
                    "one with python -c 'import secrets; print(secrets.token_urlsafe(32))'."
                )
            keys["environment"] = environment
        return cls(keys)


def _read_keys(path: Path) -> dict[str, str]:
    """The keys of a file with a `name:key` a line; blank lines and those that begin with `#` are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            f"The key file '{path}' cannot be read ({type(error).__name__}). Expected a text file with a line "
            "name:key for each client."
        ) from None
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, key = (part.strip() for part in line.partition(":"))
        if not _NAME.fullmatch(name) or len(key) < _LEAST_KEY or not key.isascii() or name in keys:
            raise SettingError(
                f"Line {number} of the key file '{path}' is no name:key. Expected a name of its own, of letters, "
                f"digits and . _ - @, and a key of at least {_LEAST_KEY} ASCII letters; make one with "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'."
            )
        keys[name] = key
    if not keys:
        raise SettingError(f"The key file '{path}' holds no key. Expected a line name:key for each client.")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class Rates:
    """How many requests each key may make: an allowance that fills evenly, up to that of half a minute."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, owner: str, *, per_minute: int) -> float:
        """Seconds after which the next request is allowed: 0 when this one is, and is counted."""
        now, most = self._clock(), max(1.0, per_minute / 2)
        left, when = self._left.get(owner, (most, now))
        left = min(most, left + (now - when) * per_minute / 60)
        allowed = left >= 1
        self._left[owner] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) * 60 / per_minute


def refuse_open_host(host: str, keys: Keys) -> None:
    """SettingError for an address that others can reach while anybody may ask."""
    if not is_loopback(host) and not keys:
        raise SettingError(
            f"--host is {host}, which other machines can reach, and there is no key: anybody could ask. Expected "
            "127.0.0.1, or keys. Give --api-key-file FILE with a line name:key for each client."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Hosts:
    """Which `Host` headers are answered: any, or where only this machine is to ask, its own names and those given."""

    def __init__(self, bound: str, *, allowed: Sequence[str] = ()) -> None:
        own = ("localhost", "127.0.0.1", "::1", bound.strip("[]"))
        names = {name.lower() for name in (*allowed, *(own if is_loopback(bound) else ()))}
        self._names = names if is_loopback(bound) or allowed else None

    def admits(self, header: str | None) -> bool:
        """Whether a `Host` header is one of them."""
        return self._names is None or (header is not None and host_name(header) in self._names)


def host_name(header: str) -> str:
    """The name in a `Host` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
