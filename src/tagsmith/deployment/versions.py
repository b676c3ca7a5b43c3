"""Which bundles answer: the one that is served, one in its shadow, one that gets a share of the requests; and reloads.

A new version is opened beside the old one (verified, warmed, checked on its probes) and takes over when it is ready;
the old one ends when it has answered what it accepted. A version that is refused changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tagsmith.deployment.classifying import Answers, Question
from tagsmith.deployment.live_model import LiveModel
from tagsmith.deployment.manifest import MANIFEST
from tagsmith.deployment.metrics import Metrics
from tagsmith.deployment.problems import Problem, not_ready
from tagsmith.deployment.supervisor import EngineLost, Launch
from tagsmith.errors import SettingError, TagsmithError

_log = logging.getLogger("tagsmith.serve")

_MOST_COMPARISONS = 64
_MOST_FAILURES = 3
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Plan:
    """What is to be served: a bundle, and beside it a shadow, a canary with its share, and a folder to watch."""

    launch: Launch
    name: str
    settings: Mapping[str, Any]
    shadow: Path | None = None
    canary: Path | None = None
    canary_share: float = 0.0
    watch: Path | None = None


class Versions:
    """The bundles that are open, and which of them answers."""

    def __init__(self, plan: Plan, metrics: Metrics) -> None:
        self.plan = plan
        self.metrics = metrics
        self.draining = False
        self.heard: Callable[[Question, Answers], None] = lambda question, answers: None
        self._current: LiveModel | None = None
        self._shadow: LiveModel | None = None
        self._canary: LiveModel | None = None
        self._canary_failures = 0
        self._reloading = asyncio.Lock()
        self._refused: str | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._comparing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open what is to be served. BundleError or EngineLost where one of the bundles cannot be."""
        self._current = await self._opened(self.plan.launch.folder)
        self.metrics.show_model(self._current.about)
        if self.plan.shadow is not None:
            self._shadow = await self._opened(self.plan.shadow)
        if self.plan.canary is not None:
            self._canary = await self._opened(self.plan.canary)
        self._log_open(self._current)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._current is not None and self._current.ready and not self.draining

    @property
    def opened(self) -> bool:
        """Whether a bundle was opened yet."""
        return self._current is not None

    @property
    def current(self) -> LiveModel:
        """The bundle that is served; Problem with 503 while there is none."""
        if self._current is None:
            raise not_ready("The bundle is being loaded. Try again soon.")
        return self._current

    @property
    def others(self) -> dict[str, LiveModel]:
        """What is open beside it, by role."""
        found = {"shadow": self._shadow, "canary": self._canary}
        return {role: model for role, model in found.items() if model is not None}

    async def answer(self, question: Question) -> Answers:
        """The answers to a question, which `heard` is told of; see `LiveModel.answer`."""
        answers = await self._answer(question)
        self.heard(question, answers)
        return answers

    async def _answer(self, question: Question) -> Answers:
        current, canary = self.current, self._canary
        if canary is not None and _share_of(question) < self.plan.canary_share:
            answers = await self._ask_canary(canary, current, question)
            if answers is not None:
                self._compare("canary", current, question, answers)
                return answers
        answers = await current.answer(question)
        if self._shadow is not None:
            self._compare("shadow", self._shadow, question, answers)
        return answers

    async def reload(self) -> str:
        """Take up the newest version: `swapped`, `unchanged`, or `refused`, in which case the old one goes on."""
        async with self._reloading:
            folder = self._newest()
            result = "refused" if folder is None else await self._take_up(folder)
            self.metrics.reloads.labels(result).inc()
            return result

    async def watch(self, *, every_s: float = 1.0) -> None:
        """Take up a new version whenever one appears, for ever."""
        while True:
            await asyncio.sleep(every_s)
            lost = self._current is not None and self._current.supervisor.refused is not None
            if self.plan.watch is None and not lost:
                continue
            folder = await asyncio.to_thread(self._newest)
            mark = None if folder is None else await asyncio.to_thread(_mark, folder)
            if folder is None or mark == self._refused or _digest(folder) == self._digest_now():
                continue
            if await self.reload() == "refused":
                self._refused = mark

    async def close(self) -> None:
        """End all engines; those who are being answered are answered first."""
        models = [model for model in (self._current, *self.others.values()) if model is not None]
        for task in self._comparing:
            task.cancel()
        await asyncio.gather(*(model.close(patience_s=1.0) for model in models), *self._closing, return_exceptions=True)

    # ---- opening

    async def _opened(self, folder: Path) -> LiveModel:
        # The folder itself and not a link to it: an engine that is restarted must find the version that it was.
        launch = replace(self.plan.launch, folder=folder.resolve())
        model = LiveModel(launch, name=self.plan.name, settings=dict(self.plan.settings), metrics=self.metrics)
        try:
            await model.open()
        except BaseException:
            await model.supervisor.stop()
            raise
        return model

    async def _take_up(self, folder: Path) -> str:
        if _digest(folder) == self._digest_now():
            _log.info("reload_unchanged", extra={"version": self.current.about.version})
            return "unchanged"
        try:
            model = await self._opened(folder)
        except TagsmithError as error:
            _log.error("reload_refused", extra={"reason": str(error)})
            return "refused"
        except (EngineLost, OSError) as error:
            _log.error("reload_refused", extra={"reason": f"its engine did not start ({type(error).__name__})"})
            return "refused"
        old, self._current = self._current, model
        self.metrics.show_model(model.about)
        self._log_open(model)
        if old is not None:
            task = asyncio.create_task(old.close(patience_s=_PATIENCE_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return "swapped"

    def _newest(self) -> Path | None:
        return newest(self.plan.watch or self.plan.launch.folder)

    def _digest_now(self) -> str | None:
        return None if self._current is None else self._current.about.digest

    def _log_open(self, model: LiveModel) -> None:
        about = model.about
        _log.info(
            "model_open",
            extra={"model": about.name, "version": about.version, "engine": about.engine, "labels": len(about.labels)},
        )

    # ---- canary and shadow

    async def _ask_canary(self, canary: LiveModel, current: LiveModel, question: Question) -> Answers | None:
        """What the canary answers; None where it cannot, after which the bundle that is served answers instead."""
        try:
            answers = await canary.answer(question)
        except Problem as problem:
            if problem.status not in (424, 503):
                raise
            self._canary_failures += 1
            _log.error("canary_failed", extra={"status": problem.status, "failures": self._canary_failures})
            if self._canary_failures >= _MOST_FAILURES and self._canary is canary:
                self._canary = None
                _log.error("canary_withdrawn", extra={"version": canary.about.version})
                task = asyncio.create_task(canary.close(patience_s=_PATIENCE_S))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            return None
        self._canary_failures = 0
        return answers

    def _compare(self, role: str, other: LiveModel, question: Question, answers: Answers) -> None:
        """Count, when it suits, whether another bundle says the same; the client does not wait for it."""
        if len(self._comparing) >= _MOST_COMPARISONS:
            return
        task = asyncio.create_task(self._compared(role, other, question, answers))
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)

    async def _compared(self, role: str, other: LiveModel, question: Question, answers: Answers) -> None:
        try:
            theirs = await other.answer(replace(question, deadline=float("inf")))
        except Problem as problem:
            _log.info("comparison_failed", extra={"role": role, "status": problem.status})
            return
        for ours, their in zip(answers.results, theirs.results, strict=True):
            self.metrics.compared.labels(role).inc()
            if set(ours.labels) != set(their.labels):
                self.metrics.disagreed.labels(role).inc()


def canary_of(given: str) -> tuple[Path, float]:
    """A canary's bundle and its share from `BUNDLE=SHARE`; SettingError where it is neither."""
    folder, _, share = given.rpartition("=")
    try:
        found = float(share)
    except ValueError:
        found = 0.0
    if not folder or not 0 < found < 1:
        raise SettingError(f"--canary is '{given}'. Expected BUNDLE=SHARE with a share between 0 and 1, as in new=0.1.")
    return Path(folder), found


def newest(folder: Path) -> Path | None:
    """The bundle in a folder: the folder itself, or the one of its folders whose manifest is the newest."""
    if (folder / MANIFEST).is_file():
        return folder
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".") and (path / MANIFEST).is_file()]
        return max(found, key=lambda path: ((path / MANIFEST).stat().st_mtime_ns, path.name), default=None)
    except OSError:
        return None


def _mark(folder: Path) -> str:
    """What tells one state of a folder from another, so that a refused one is not tried again until it changes."""
    facts = [str(folder.resolve())]
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            facts.append(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}")
    except OSError as error:
        facts.append(type(error).__name__)
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _digest(folder: Path) -> str | None:
    """What a manifest says that it is the digest of, unverified; None where it says nothing."""
    try:
        return str(json.loads((folder / MANIFEST).read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _share_of(question: Question) -> float:
    """A number in [0, 1) that belongs to the first text, so that the same text is always asked of the same bundle."""
    digest = (
        hashlib.sha256(question.texts[0].encode("utf-8", "surrogatepass")).digest() if question.texts else b"\0" * 8
    )
    return int.from_bytes(digest[:8], "big") / 2**64
