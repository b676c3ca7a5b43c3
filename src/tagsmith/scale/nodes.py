"""The machines of a cluster, before any work is sent to them: what they run, what they see, and what fits on them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tagsmith.errors import ResourceError, SettingError
from tagsmith.scale.cluster import first_line

T = TypeVar("T")
_SECONDS_TO_ANSWER = 120.0
_EPSILON = 1e-6


@dataclass(frozen=True)
class Node:
    """A machine: its id, what it is called, and what of it can be reserved, in bytes where it is memory."""

    id: str
    name: str
    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Need:
    """What a plan reserves: so many workers, `fewest` at least, and of each so much; `what` is that in words."""

    what: str
    workers: int
    fewest: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0


def living() -> list[Node]:
    """The machines of the cluster, in the order of their names."""
    import ray

    found = [_node(each) for each in ray.nodes() if each["Alive"]]
    return sorted(found, key=lambda node: (node.name, node.id))


def _node(told: Mapping[str, Any]) -> Node:
    has = told["Resources"]
    return Node(
        told["NodeID"],
        f"{told['NodeManagerHostname']} ({told['NodeManagerAddress']})",
        has.get("CPU", 0.0),
        has.get("GPU", 0.0),
        has.get("memory", 0.0),
    )


# --- what fits ------------------------------------------------------------------------------------------------------


def workers_that_fit(need: Need, nodes: Sequence[Node]) -> int:
    """How many workers of a plan fit at once, at most as many as it wants; ResourceError for fewer than it needs.

    Ray itself would wait, in silence and for ever, for machines that can hold the rest.
    """
    fits = room_for(need, nodes)
    if fits >= need.fewest:
        return fits
    has = "; ".join(f"{node.name}: {_amounts(node)}" for node in nodes) or "no machine"
    raise ResourceError(
        f"{need.what} needs {need.fewest} worker{'s' if need.fewest > 1 else ''} with {_amounts(need)} each, and the "
        f"cluster has room for {fits}: {has}. Expected room for {need.fewest}, or it would wait for ever; add machines "
        "to the cluster, or ask for less."
    )


def room_for(need: Need, nodes: Sequence[Node]) -> int:
    """How many workers of a plan fit at once, at most as many as it wants."""
    return min(need.workers, sum(_on(node, need) for node in nodes))


def _on(node: Node, need: Need) -> int:
    room = [(node.cpus, need.cpus), (node.gpus, need.gpus), (node.memory, need.memory)]
    return min((int(has / wants + _EPSILON) for has, wants in room if wants > 0), default=need.workers)


def _amounts(of: Node | Need) -> str:
    words = [f"{of.cpus:g} CPU{'' if of.cpus == 1 else 's'}"]
    words += [f"{of.gpus:g} GPU{'' if of.gpus == 1 else 's'}"] if of.gpus else []
    words += [f"{of.memory / 1e9:.1f} GB of memory"] if of.memory else []
    return ", ".join(words)


# --- what they run and see ------------------------------------------------------------------------------------------


def require_same_versions(nodes: Sequence[Node]) -> None:
    """SettingError unless all machines run the Python and the Tagsmith of this process."""
    here = _versions_probe()()
    for node, there in zip(nodes, on_each(nodes, _versions_probe()), strict=True):
        if there[1] is None:
            raise SettingError(
                f"The machine {node.name} has no Tagsmith for its Python {there[0]}. Expected Tagsmith {here[1]} on "
                f'each machine of the cluster; pip install "tagsmith[ray]=={here[1]}" there.'
            )
        if there != here:
            raise SettingError(
                f"The machine {node.name} runs Python {there[0]} and Tagsmith {there[1]}; here it is Python {here[0]} "
                f"and Tagsmith {here[1]}. Expected the same on each machine of the cluster; install it there, or run "
                "the command in an environment like theirs."
            )


def require_shared(folder: Path, nodes: Sequence[Node]) -> None:
    """SettingError unless each machine sees the same `folder`; a file is written into it and removed."""
    here = folder.resolve()
    mark = here / f".tagsmith-{secrets.token_hex(8)}"
    try:
        mark.write_text(mark.name, encoding="utf-8")
        seen = on_each(nodes, _reading_probe(str(mark)))
    except OSError as error:
        raise ResourceError(
            f"Cannot write to '{folder}': {error.strerror}. Expected a folder that all machines can write to; choose "
            "another."
        ) from error
    finally:
        mark.unlink(missing_ok=True)
    blind = [node.name for node, found in zip(nodes, seen, strict=True) if found != mark.name]
    if blind:
        raise _not_shared(here, blind, nodes)


def require_same_file(path: Path, nodes: Sequence[Node]) -> None:
    """SettingError unless each machine reads the same text from `path` as this one."""
    here = path.resolve()
    said = here.read_text(encoding="utf-8")
    blind = [
        node.name for node, found in zip(nodes, on_each(nodes, _reading_probe(str(here))), strict=True) if found != said
    ]
    if blind:
        raise _not_shared(here.parent, blind, nodes)


def require_seen(paths: Sequence[Path], nodes: Sequence[Node]) -> None:
    """SettingError unless each machine sees files of the same sizes at these paths."""
    sizes = [path.stat().st_size for path in paths]
    seen = on_each(nodes, _size_probe([str(path) for path in paths]))
    blind = [node.name for node, found in zip(nodes, seen, strict=True) if found != sizes]
    if blind:
        raise _not_shared(paths[0].parent, blind, nodes)


def _not_shared(folder: Path, blind: Sequence[str], nodes: Sequence[Node]) -> SettingError:
    return SettingError(
        f"'{folder}' is not the same folder on {len(blind)} of {len(nodes)} machines: {', '.join(blind[:5])} cannot "
        "see what lies in it here. Expected storage that all of them share, under the same path (NFS, or a mounted "
        "bucket); put the files there."
    )


def on_each(nodes: Sequence[Node], ask: Callable[[], T]) -> list[T]:
    """What `ask` gives on each machine; ResourceError for one that does not answer in two minutes.

    It reserves nothing, so that it runs on machines that are busy too.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = [
        ray.remote(ask)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False))
        .remote()
        for node in nodes
    ]
    silent = ray.wait(asked, num_returns=len(asked), timeout=_SECONDS_TO_ANSWER)[1] if asked else []
    if silent:
        late = [node.name for node, ref in zip(nodes, asked, strict=True) if ref in silent]
        raise ResourceError(
            f"{len(late)} of {len(nodes)} machines did not answer within {_SECONDS_TO_ANSWER:.0f} s: "
            f"{', '.join(late[:5])}. Expected all of them; look at their logs, or take them out of the cluster."
        )
    try:
        return ray.get(asked)
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"A machine of the cluster failed while it was asked what it has: {first_line(error)} Expected an answer; "
            "look at the logs of its Ray."
        ) from error


def _versions_probe() -> Callable[[], tuple[str, str | None]]:
    """A function that travels as its code: a machine that lacks Tagsmith, or has another, can run it."""

    def versions() -> tuple[str, str | None]:
        import platform

        try:
            import tagsmith
        except ImportError:
            return platform.python_version(), None
        return platform.python_version(), tagsmith.__version__

    return versions


def _reading_probe(path: str) -> Callable[[], str | None]:
    def read() -> str | None:
        try:
            with open(path, encoding="utf-8") as file:  # noqa: PTH123 - it runs with the standard library alone
                return file.read()
        except OSError:
            return None

    return read


def _size_probe(paths: Sequence[str]) -> Callable[[], list[int]]:
    def sizes() -> list[int]:
        import os

        return [os.stat(path).st_size if os.path.exists(path) else -1 for path in paths]  # noqa: PTH116, PTH110

    return sizes
