"""A Ray cluster: one of this machine's own, or one that runs already; with a token, and never open to all."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tagsmith.errors import ResourceError, SettingError

PORT = 6379
"""Where the head of a cluster listens unless told otherwise."""

_CLIENT_PORT = 10001
_SECONDS_TO_REACH = 5.0
_STORE_BYTES = 512 * 2**20
_SOCKET_ROOM = 40
"""Longest folder that leaves Ray's sockets under the 107 bytes that Linux allows them."""


@dataclass(frozen=True)
class Place:
    """Where work is sent: `ray` is a cluster that this machine starts for it, else the host and port of a head."""

    host: str | None = None
    port: int = PORT

    @property
    def address(self) -> str | None:
        """HOST:PORT, or None for a cluster of one's own."""
        if self.host is None:
            return None
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def of(cls, on: str) -> Place:
        """Read `ray` or `ray://HOST[:PORT]`; SettingError for anything else."""
        if on == "ray":
            return cls()
        scheme, separator, rest = on.partition("://")
        host, port = _host_and_port(rest.rstrip("/"))
        if scheme != "ray" or not separator or not host or port is None:
            raise SettingError(
                f"--on is '{on}'. Expected ray, for a cluster on this machine, or ray://HOST[:PORT], for one that runs "
                f"already (its head listens on {PORT}, unless it was started with another --port)."
            )
        if port == _CLIENT_PORT:
            raise SettingError(
                f"--on names port {_CLIENT_PORT}, which is Ray Client's. Expected the port of the cluster's head, "
                f"usually ray://{host}:{PORT}; run the command on a machine of the cluster."
            )
        return cls(host, port)


def _host_and_port(rest: str) -> tuple[str, int | None]:
    if rest.startswith("["):  # an IPv6 address
        host, bracket, port = rest[1:].partition("]")
        port = port.removeprefix(":")
        rest_is_whole = bool(bracket)
    else:
        host, _, port = rest.partition(":")
        rest_is_whole = "/" not in rest and "@" not in rest
    if not rest_is_whole or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        return host, None
    return host, int(port) if port else PORT


@contextmanager
def connected(on: str, *, cpus: int | None = None) -> Iterator[None]:
    """Ray at hand, by a cluster of this machine with so many CPUs (None: all it has), or by one that runs already.

    A cluster that is started here listens on loopback alone, has no dashboard, asks for a token that nobody else knows,
    reports its usage to nobody, and ends with the block. A process that is connected already keeps its connection.

    Raises:
        SettingError: Ray is not installed, `on` cannot be read, a cluster has other versions, or no token.
        ResourceError: nobody answers at the address, or a cluster cannot be started here.
    """
    place = Place.of(on)
    require_ray()
    _prepare_environment(place)
    import ray

    if ray.is_initialized():
        _require_same_cluster(place, ray.get_runtime_context().gcs_address)
        yield
        return
    _read_environment_again()
    folder = None if place.address is not None else _own_folder()
    try:
        if folder is None:
            _join(place)
        else:
            _start(cpus, folder)
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def require_ray() -> None:
    """SettingError where Ray is not installed."""
    if find_spec("ray") is None:
        raise SettingError(
            '--on ray needs the library ray, which is not installed. Install it with pip install "tagsmith[ray]", or '
            "leave out --on: everything runs on this machine without it."
        )


def _prepare_environment(place: Place) -> None:
    """What Ray reads while it is imported, and hands on to the processes that it starts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as it will be by default, without the warning
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # 30 s are few where the cores are busy
    os.environ["RAY_AUTH_MODE"] = "token"
    if place.address is None:
        # Named for other systems, and read on Linux alike: every process of the cluster listens on 127.0.0.1 alone.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _read_environment_again() -> None:
    """Ray keeps what it read of the environment when it was imported, which may have been before we set it."""
    from ray import _raylet

    config: Any = _raylet  # its stubs lack these names
    if config.get_authentication_mode() != config.AuthenticationMode.TOKEN:
        config.Config.initialize("")


def _require_same_cluster(place: Place, address: str) -> None:
    if place.address is not None and place.address != address:
        raise SettingError(
            f"This process is connected to the cluster at {address}, and --on names {place.address}. Expected one "
            "cluster a process; call ray.shutdown() first, or name the same."
        )


# --- a cluster of one's own -----------------------------------------------------------------------------------------


def _own_folder() -> Path:
    """A new folder for logs and sockets, short enough for these."""
    asked = os.environ.get("RAY_TMPDIR")
    for parent in [asked] if asked else [tempfile.gettempdir(), "/tmp"]:
        folder = Path(tempfile.mkdtemp(prefix="tagsmith-ray-", dir=parent))
        if len(str(folder)) <= _SOCKET_ROOM:
            return folder
        folder.rmdir()
    raise SettingError(
        f"Ray keeps sockets in the folder for temporary files, and '{asked or tempfile.gettempdir()}' is too long a "
        "name for them. Expected at most 18 characters; set RAY_TMPDIR to a shorter one."
    )


def _start(cpus: int | None, folder: Path) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus or len(os.sched_getaffinity(0)),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            _temp_dir=str(folder),
            **_QUIET,
        )
    except (RuntimeError, OSError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        raise ResourceError(
            f"A Ray cluster could not be started on this machine: {first_line(error)} Expected about 1.5 GB of free "
            "memory and a folder for temporary files that can be written; free some, or leave out --on."
        ) from error


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""What workers print would land between the lines that a command prints."""


# --- a cluster that runs already ------------------------------------------------------------------------------------


def _join(place: Place) -> None:
    import ray

    _require_listening(place)
    _require_guarded(place)
    try:
        ray.init(address=place.address, **_QUIET)
    except (RuntimeError, OSError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        if "ersion mismatch" in str(error):
            raise SettingError(
                f"The cluster at {place.address} has another Python or Ray than this machine: "
                f"{' '.join(str(error).split())} Expected the same on all machines; install it here or there."
            ) from error
        raise ResourceError(
            f"The cluster at {place.address} answers, and would not have this process: {first_line(error)} Expected "
            "the command to run on a machine of the cluster; log in to one, or make this machine one with "
            f"ray start --address={place.address}."
        ) from error


def _require_guarded(place: Place) -> None:
    """Ask the head without a token: where that is answered, anybody who reaches it may run code. Then with our own.

    SettingError for a cluster on other machines that lets anybody in, and for one that does not let us in;
    ResourceError for what is no cluster.
    """
    if _lets_in(place, None):
        if _is_loopback(place.host or ""):
            return
        raise SettingError(
            f"The cluster at {place.address} lets anybody who reaches it run code: it asks for no token. Expected one "
            "that does; start each of its machines with RAY_AUTH_MODE=token and the same token (`ray get-auth-token "
            "--generate` makes one)."
        )
    token = _token()
    if token is None or not _lets_in(place, token):
        raise SettingError(
            f"The cluster at {place.address} asks for a token, and this machine has "
            f"{'none' if token is None else 'another'}. Expected the cluster's in RAY_AUTH_TOKEN, in the file that "
            "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token; copy it."
        )


def _lets_in(place: Place, token: str | None) -> bool:
    import grpc

    said = None if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(place.address or "") as channel:
        try:
            channel.unary_unary(_CHECK_ALIVE)(b"", timeout=_SECONDS_TO_REACH, metadata=said)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else None
            if code is grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise ResourceError(
                f"Something listens at {place.address}, and it is no head of a Ray cluster ({code}). Expected the "
                f"address that `ray start --head` printed, with its port ({PORT} unless told otherwise)."
            ) from error
    return True


def _token() -> str | None:
    """The token of this machine, from where Ray looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def _require_listening(place: Place) -> None:
    try:
        socket.create_connection((place.host or "", place.port), timeout=_SECONDS_TO_REACH).close()
    except OSError as error:
        raise ResourceError(
            f"Nobody answers at {place.address} ({error.strerror or error}). Expected the head of a Ray cluster, as "
            "`ray start --head` starts one; start it, correct the address, or take --on ray for a cluster on this "
            "machine."
        ) from error


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def first_line(error: BaseException) -> str:
    """What an error of Ray's says, without its pages of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return said if said.endswith(".") else f"{said}."
