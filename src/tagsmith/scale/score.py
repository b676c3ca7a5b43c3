"""A table in, the same table with labels out, on a cluster: the parts and the journal of one machine, made by many.

One process reads the source and keeps the journal; workers compute parts and write each under a name of its own. What
the journal does not know of does not count, so a part is there once, whoever died and whatever was computed twice.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagsmith.deployment import scoring
from tagsmith.deployment.engine import Answer
from tagsmith.deployment.journal import finished, flushed
from tagsmith.deployment.labelled import Answerer, Labelling, answers_or_aside, aside_of, set_aside
from tagsmith.deployment.manifest import MANIFEST, verify
from tagsmith.deployment.recipe import labels_of, read_settings
from tagsmith.deployment.scoring import Portion, Work, begun, manifest_hash
from tagsmith.errors import SettingError
from tagsmith.events import Event, Listener, silent
from tagsmith.scale.cluster import connected
from tagsmith.scale.nodes import Need, living, require_same_file, require_same_versions, require_shared
from tagsmith.scale.pool import IN_HAND, Lost, Pool

_BYTES_OF_A_PROCESS = 0.8e9
_COPIES_OF_WEIGHTS = 3
_CRASHES_OF_A_PART, _CRASHES_OF_A_ROW = 2, 2


def score_on(
    on: str,
    bundle: str | Path,
    source: str | Path,
    *,
    out: str | Path,
    text: str | None = None,
    query: str | None = None,
    engine: str = "reference",
    device: str = "cpu",
    workers: int | None = None,
    force: bool = False,
    resume: bool = False,
    spreadsheet_safe: bool = False,
    listen: Listener = silent,
) -> int:
    """As `scoring.score`, by workers of one CPU each on the cluster `on`: as many as fit, at most `workers`.

    Either finishes what the other began. A row that kills its worker again and again, or at which it hangs, is set
    aside with the remark `failed`; workers that are lost are replaced, and what they had in hand is computed anew.

    Raises:
        SettingError: as `score`, or machines that differ, or that do not share the folders of `bundle` and `out`.
        ResourceError: as `score`, or a cluster that cannot be reached, has no room for a worker, or loses all of them.
    """
    target, folder = Path(out).resolve(), Path(bundle).resolve()
    verify(folder)
    settings = read_settings(folder)
    if resume and (rows := finished(target)) is not None:
        return rows
    if not target.parent.is_dir():
        raise SettingError(f"The folder of '{out}' does not exist. Expected one that is there; make it.")
    labels, named = labels_of(settings), settings["config"]["data"]
    with connected(on):
        nodes = living()
        require_same_versions(nodes)
        require_same_file(folder / MANIFEST, nodes)
        require_shared(target.parent, nodes)
        worker = Worker(str(folder), engine, device)
        with Pool(worker, _need(folder, device, workers), starting=f"the bundle '{bundle}'", units=len) as pool:
            answerer = Answerer(manifest_hash(folder), pool.first(), labels.names, labels.multi_label)
            listen(_told_of(pool.size, answerer.engine))
            with begun(
                answerer,
                source,
                out=target,
                text=text or named["text"],
                text_pair=named.get("text_pair"),
                query=query,
                force=force,
                resume=resume,
                spreadsheet_safe=spreadsheet_safe,
                listen=listen,
            ) as work:
                _label_all(work, pool)
                return work.finish()


def _told_of(workers: int, engine: str) -> Event:
    text = f"{workers} worker{'s' if workers > 1 else ''} of one CPU, each with the engine {engine}."
    return Event("deployment", "note", values={"text": text})


def _need(folder: Path, device: str, workers: int | None) -> Need:
    """One CPU each, and memory for a process that holds the weights and what it computes with."""
    largest = max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)
    gpus = 0.0 if device == "cpu" else 1.0
    memory = _BYTES_OF_A_PROCESS + _COPIES_OF_WEIGHTS * largest
    return Need("Scoring", workers=workers or 10**6, cpus=1.0, gpus=gpus, memory=memory)


# --- what a worker does ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """A part that a worker wrote: the name of its file, its hash, and how many of its rows were set aside."""

    name: str
    sha256: str
    aside: int


class Worker:
    """Answers with one loaded bundle, on one thread."""

    def __init__(self, folder: str, engine: str, device: str) -> None:
        self.folder, self.engine_name, self.device = folder, engine, device
        self._engine: Any = None

    def start(self) -> str:
        """Load the bundle; gives the name of the engine that answers."""
        from tagsmith.deployment.engine import open_engine

        self._engine = open_engine(self.folder, self.engine_name, threads=1, device=self.device)
        if "torch" in sys.modules:  # freed and asked for again with each batch, memory took 4 % of the processor's time
            from tagsmith.model.packing import keep_freed_memory

            keep_freed_memory()
        return str(self._engine.name)

    def write(self, labelling: Labelling, folder: str, number: int, records: list[Any]) -> Written:
        """Label the rows of a part, and write them into the folder of parts under a name that is nobody else's."""
        answers = self.answers(labelling.texts(records))
        path = Path(folder) / f"part-{number:06d}.{os.getpid()}-{secrets.token_hex(4)}"
        labelling.write(records, answers, path)
        return Written(path.name, flushed(path), aside_of(answers))

    def answers(self, texts: list[str]) -> list[Answer]:
        """The answers to some texts of a part."""
        return answers_or_aside(self._engine.answer, texts)


# --- which part is whose --------------------------------------------------------------------------------------------


@dataclass
class Task:
    """Rows `start` to `end` of a part to be computed; `crashes` is how often a worker died of them or beside them.

    A whole part is written by its worker; pieces of one, of which some row may be what kills, come back as answers.
    """

    portion: Portion
    start: int
    end: int
    crashes: int = 0

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its part."""
        return self.start == 0 and self.end == len(self.portion.records)


@dataclass
class Pieces:
    """The answers of a part that is computed piece by piece, as far as they are known."""

    portion: Portion
    answers: list[Answer | None] = field(default_factory=list)

    def fill(self, start: int, found: list[Answer]) -> bool:
        """Note answers from row `start` on; whether all are known now."""
        self.answers = self.answers or [None] * len(self.portion.records)
        self.answers[start : start + len(found)] = found
        return None not in self.answers


def _label_all(work: Work, pool: Pool) -> None:
    """Hand out all parts that are left, those first that were lost with their workers."""
    again: deque[Task] = deque()
    pieces: dict[int, Pieces] = {}
    new = _whole_parts(work)
    labelling = pool.share(work.labelling)
    folder = str(work.parts.folder)

    def more() -> Task | None:
        return again.popleft() if again else next(new, None)

    def submit(worker: Any, task: Task) -> Any:
        portion = task.portion
        if task.is_whole and portion.number not in pieces:
            return worker.call("write", labelling, folder, portion.number, portion.records)
        return worker.call("answers", portion.texts[task.start : task.end])

    def each() -> int:
        # The answer to a task may be lost with a worker that died of its next one right after, and the first be blamed.
        # So nobody has a second task while there is one at which a worker died.
        return 1 if any(task.crashes for task in (*again, *pool.in_hand)) else IN_HAND

    for task, result in pool.run(more, submit, each):
        if isinstance(result, Lost):
            _tell_of_hanging(task, result, work)
            again.extendleft(reversed(_after_loss(task, result, pieces, work)))
        elif isinstance(result, Written):
            path = work.parts.folder / result.name
            work.adopt(task.portion, aside=result.aside, written=path, sha256=result.sha256)
        else:
            _fill(task, result, pieces, work)


def _tell_of_hanging(task: Task, lost: Lost, work: Work) -> None:
    if lost.hung_s is None:
        return
    first = scoring.ROWS_AT_ONCE * task.portion.number + task.start
    rows = f"row {first}" if len(task) == 1 else f"rows {first} to {first + len(task) - 1}"
    text = (
        f"A worker gave no answer to {rows} for {lost.hung_s:.0f} s and was ended: they are tried again or set aside."
    )
    work.listen(Event("deployment", "note", values={"text": text}))


def _whole_parts(work: Work) -> Iterator[Task]:
    for portion in work.left():
        yield Task(portion, 0, len(portion.records))


def _after_loss(task: Task, lost: Lost, pieces: dict[int, Pieces], work: Work) -> list[Task]:
    """What is left to do of a task whose worker died: all of it, or its halves, or nothing where it is one row.

    A task that only waited for its worker, or whose machine went away with all that ran on it, is not to blame.
    """
    if not lost.blamed:
        return [task]
    task.crashes += 1
    count = len(task)
    if task.crashes < (_CRASHES_OF_A_PART if count > 1 else _CRASHES_OF_A_ROW):
        return [task]
    pieces.setdefault(task.portion.number, Pieces(task.portion))
    if count == 1:
        _fill(task, [set_aside()], pieces, work)
        return []
    middle = task.start + count // 2
    # A half that kills its worker once is halved again: what it is a half of did so twice.
    known = 0 if count == 2 else _CRASHES_OF_A_PART - 1
    return [Task(task.portion, task.start, middle, known), Task(task.portion, middle, task.end, known)]


def _fill(task: Task, answers: list[Answer], pieces: dict[int, Pieces], work: Work) -> None:
    held = pieces[task.portion.number]
    if held.fill(task.start, answers):
        work.add(task.portion, [answer for answer in held.answers if answer is not None])
        del pieces[task.portion.number]
