"""`tagsmith serve --on ray`: Ray Serve places, routes and scales replicas; each is the server that stands alone too.

A replica has its own engine process, its own batcher and its own queue, and its application is the one of
`tagsmith serve`, guard included. Ray's proxy stands before it: how long headers may take, and how many connections
there may be, is the proxy's to say.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tagsmith.config import Config
from tagsmith.deployment.guard import App
from tagsmith.deployment.limits import Hosts, refuse_open_host
from tagsmith.deployment.manifest import verify
from tagsmith.deployment.metrics import Metrics
from tagsmith.deployment.server import Door, create_app, guarded
from tagsmith.deployment.versions import Plan, Versions
from tagsmith.errors import BundleError, ResourceError, SettingError
from tagsmith.scale.cluster import connected, first_line, require_ray
from tagsmith.scale.nodes import Need, living, require_same_versions, require_shared, workers_that_fit

_HEALTH_S, _OPENING_S = 10.0, 120.0


@dataclass(frozen=True)
class Replicas:
    """How many replicas, between `fewest` and `most`, and the CPUs and GPUs that each reserves."""

    fewest: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @classmethod
    def read(cls, asked: str | None, *, cpus: float = 1.0) -> Replicas:
        """`2`, or `1:4` for one to four as requests come in; one where nothing is asked."""
        if asked is None:
            return cls(cpus=cpus)
        fewest, colon, most = asked.partition(":")
        numbers = [fewest, most if colon else fewest]
        if not all(each.isdecimal() for each in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]):
            raise SettingError(f"--replicas is '{asked}'. Expected a number, as 2, or the fewest and the most, as 1:4.")
        return cls(int(numbers[0]), int(numbers[1]), cpus)


@contextmanager
def served(plan: Plan, door: Door, *, on: str = "ray", replicas: Replicas | None = None) -> Iterator[str]:
    """A bundle being served on a cluster while the block lasts; gives the address.

    SettingError for an address that others reach without keys, BundleError where the bundle is refused, ResourceError
    where replicas do not fit.
    """
    require_ray()
    refuse_open_host(door.host, door.keys)
    verify(plan.launch.folder)
    replicas = replicas or Replicas()
    with connected(on):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        nodes = living()
        require_same_versions(nodes)
        require_shared(plan.launch.folder.parent, nodes)
        need = Need("Serving", replicas.most, fewest=replicas.fewest, cpus=replicas.cpus, gpus=replicas.gpus)
        workers_that_fit(need, nodes)
        port = door.port or _free_port(door.host)
        serve.start(proxy_location="HeadOnly", http_options={"host": door.host, "port": port})
        try:
            _deploy(replace(plan, launch=_launch(plan, replicas)), door, replicas)
            shown = "127.0.0.1" if door.host in ("0.0.0.0", "::") else door.host
            yield f"http://{shown}:{port}"
        finally:
            serve.delete(_name(plan))
            if on == "ray":
                serve.shutdown()


def serve(
    plan: Plan, door: Door, *, on: str = "ray", replicas: Replicas | None = None, started: Callable[[str], None]
) -> None:
    """Serve until a signal says to stop; `started` hears the address as soon as it answers."""
    stopping = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with served(plan, door, on=on, replicas=replicas) as address:
        for number in before:  # Ray has set handlers of its own by now
            signal.signal(number, lambda *_: stopping.set())
        try:
            started(address)
            stopping.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _launch(plan: Plan, replicas: Replicas) -> Any:
    folder = plan.launch.folder.resolve()  # a replica begins in a folder of its own
    return replace(plan.launch, folder=folder, threads=plan.launch.threads or max(1, int(replicas.cpus)))


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _name(plan: Plan) -> str:
    return f"tagsmith-{plan.name}"


def _deploy(plan: Plan, door: Door, replicas: Replicas) -> None:
    from ray import serve

    settings = Config.of({"deployment": plan.settings}).deployment
    scaling: dict[str, Any] = {"num_replicas": replicas.fewest}
    if replicas.fewest < replicas.most:
        bounds = {"min_replicas": replicas.fewest, "max_replicas": replicas.most}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": settings.max_texts}}
    deployment: Any = serve.deployment(
        serve.ingress()(Replica),
        name=_name(plan),
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=2 * settings.queue_texts,  # it is the replica's own queue that says 429
        graceful_shutdown_timeout_s=settings.drain_s + 5,
        health_check_period_s=_HEALTH_S,
        health_check_timeout_s=_OPENING_S,
        **scaling,
    )
    try:
        serve.run(deployment.bind(plan, door), name=_name(plan), route_prefix="/")
    except RuntimeError as error:
        raise _refused(plan, error) from error


def _refused(plan: Plan, error: RuntimeError) -> ResourceError:
    from ray import serve

    told = serve.status().applications.get(_name(plan))
    reasons = [line for line in (told.message if told else str(error)).splitlines() if "Error" in line]
    why = reasons[-1].strip() if reasons else first_line(error)
    return ResourceError(
        f"No replica could open the bundle '{plan.launch.folder}': {why} "
        "Expected enough memory on the machines, and an engine that is installed there; choose another --engine, or "
        "look at the logs of the replicas."
    )


class Replica:
    """One server of many: a bundle, its engine, its queue; Ray Serve asks it for its application and its health."""

    async def __init__(self, plan: Plan, door: Door) -> None:
        import asyncio

        from tagsmith.deployment.service_log import start_logging

        start_logging()
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._versions = Versions(plan, Metrics())
        self._door = door
        await self._versions.open()
        self._watching = asyncio.create_task(self._versions.watch())

    def __serve_build_asgi_app__(self) -> App:
        """The application of `tagsmith serve`, with its guard."""
        return guarded(
            create_app(self._versions),
            self._versions,
            keys=lambda: self._door.keys,
            hosts=Hosts(self._door.host, allowed=self._door.allowed_hosts),
        )

    def check_health(self) -> None:
        """BundleError where it cannot answer, so that another replica takes its place."""
        if self._versions.opened and self._versions.current.supervisor.refused is not None:
            raise BundleError("The engine could not be started again; another replica takes this one's place.")

    async def __del__(self) -> None:
        self._watching.cancel()
        await self._versions.close()
