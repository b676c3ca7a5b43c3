"""What a student loses and gains, and what labelling the rows that are listed first brings: banking77.

A few training rows of each label have one, some of the others are rows without. Two winners are trained; each teaches
TF-IDF and encoders by the product's own code, as `tagsmith train --unlabelled` does. All of them answer the test texts,
whose labels a scorer of its own reads; the rows that were ranked first then get their labels from the data set, and so
do as many by chance. Each training is a cell in a process of its own (cells.py): finished ones are reused.

    python benchmarks/distillation.py --write docs/benchmarks/distillation.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from cells import KEPT, answered, cell, machine
from peers import DATA

from tagsmith.config import Config, merge, settings_of
from tagsmith.data.duplicates import leak
from tagsmith.data.table import Table

SET = "banking77"
ENCODER, CAUSAL = "minilm-l6", "smollm2-135m-instruct-q4"
WINNERS: dict[str, dict[str, dict[str, Any]]] = {
    CAUSAL: {
        "model": {"backbone": CAUSAL, "layers": 16},
        "tuning": {"method": "last_layers", "blocks": 2, "start": "probe", "epochs": 4, "average": "best"},
    },
    ENCODER: {
        "model": {"backbone": ENCODER},
        "tuning": {
            "method": "contrastive",
            "start": "probe",
            "epochs": 6,
            "batch_size": 32,
            "learning_rate": 1e-4,
        },
    },
}
STUDENTS = {CAUSAL: (("tfidf", 0), (ENCODER, 6)), ENCODER: (("tfidf", 0), (ENCODER, 3))}
"""Who is taught by whom, with how many blocks."""
DRAWS, PASSES, TIMED_TEXTS, MOST_TEST_ROWS = 5, 5, 300, 1540


def main() -> None:
    """Run what was not run yet, score it, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--winners", default=",".join(WINNERS), help="names with commas")
    parser.add_argument("--each", type=int, default=20, help="labelled rows of each label, validation rows among them")
    parser.add_argument("--unlabelled", type=int, default=2000)
    parser.add_argument("--labels", type=int, default=500, help="rows that are labelled next")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    common = {"each": arguments.each, "unlabelled": arguments.unlabelled, "seed": arguments.seed}
    found, winners = {}, arguments.winners.split(",")
    for winner in winners:
        taught = {"winner": cell(__file__, "winner", winner=winner, **common)}
        for name, layers in STUDENTS[winner]:
            one = cell(__file__, "student", winner=winner, name=name, layers=layers, **common)
            taught[name if name == "tfidf" else f"{name}, {layers} blocks"] = one
        found[winner] = taught
    labelled = {
        winner: cell(__file__, "labelled", winner=winner, labels=arguments.labels, **common) for winner in winners
    }
    page = _page(found, labelled, arguments)
    print(page)
    if arguments.write:
        arguments.write.write_text(page, encoding="utf-8")


# ---- Rows


def _rows(*, each: int, unlabelled: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with a label, so many of each, and others whose label nobody sees before it is bought.

    Of the others those like a row with a label or a test row are left out, as the product does.
    """
    frame = pl.read_parquet(DATA / SET / "train.parquet", columns=["text", "label"])
    frame = frame.unique("text", maintain_order=True).sample(fraction=1.0, shuffle=True, seed=seed)
    frame = frame.with_columns(pl.int_range(pl.len()).over("label").alias("place"))
    known, others = frame.filter(pl.col("place") < each), frame.filter(pl.col("place") >= each)
    twins = leak([*known["text"], *_test()[0]], others["text"].to_list(), near=Config().data.near_duplicates).near
    return known.drop("place"), others.drop("place").filter(~twins).head(unlabelled)


def _test() -> tuple[list[str], list[str]]:
    """Half of the test rows, in an order of chance."""
    frame = pl.read_parquet(DATA / SET / "test.parquet", columns=["text", "label"])
    frame = frame.sample(fraction=1.0, shuffle=True, seed=0).head(MOST_TEST_ROWS)
    return frame["text"].to_list(), frame["label"].to_list()


def _config(winner: str, seed: int) -> Config:
    own = {"evaluation": {"audit": False, "robustness_rows": 0}, "seed": seed}
    return Config.of(merge(settings_of("fixed"), WINNERS[winner], own))


def _sources(known: pl.DataFrame) -> tuple[Table, Table]:
    """What is learnt from and chosen by, and the test rows, opened when a model is chosen."""
    return Table.of(known["text"].to_list(), known["label"].to_list()), Table.of(*_test())


# ---- Cells


def _winner(*, winner: str, **common: int) -> dict[str, Any]:
    """A winner, kept for its students with what it says of the rows without labels."""
    import tagsmith

    known, others = _rows(**common)
    source, test = _sources(known)
    folder = _folder(winner, **common)
    started = time.perf_counter()
    bundle = tagsmith.train(
        source, test=test, out=folder / "bundle", config=_config(winner, common["seed"]), force=True
    )
    seconds = time.perf_counter() - started
    np.save(folder / "probs.npy", bundle.predict_proba(others["text"].to_list()))
    return _told(bundle.predict_proba, bundle.labels, seconds) | {
        "tfidf": _answers(bundle.baseline_probabilities(_test()[0])["tfidf"], bundle.labels)
    }


def _folder(winner: str, **common: int) -> Path:
    words = "-".join(str(value) for value in common.values())
    folder = KEPT / "distillation" / f"{winner}-{words}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _lesson(winner: str, student: Mapping[str, Any], **common: int) -> tuple[Any, Any]:
    """What the students of a winner learn from, and a run with their settings."""
    from tagsmith.building import import_all
    from tagsmith.deployment.bundle import load
    from tagsmith.events import silent
    from tagsmith.reading import prepare_sources
    from tagsmith.run import Run
    from tagsmith.teaching import Lesson

    import_all()
    known, others = _rows(**common)
    run = Run(_config(winner, common["seed"]).with_settings({"tuning": dict(student)}), silent, command="")
    source, test = _sources(known)
    folder = _folder(winner, **common)
    prepared = prepare_sources(source, None, test, run)
    return Lesson(load(folder / "bundle"), prepared, others["text"].to_list(), np.load(folder / "probs.npy")), run


def _student(*, winner: str, name: str, layers: int, **common: int) -> dict[str, Any]:
    """One student, saved and asked as any bundle is."""
    from tagsmith.teaching import chosen_student, taught_lexical

    asked = {"student": name} | ({"student_layers": layers} if layers else {})
    lesson, run = _lesson(winner, asked, **common)
    started = time.perf_counter()
    lexical = taught_lexical(lesson, seed=common["seed"])
    student = chosen_student(lesson, lexical, run, stop=lambda: False)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as aside:
        bundle = student.save(Path(aside))
        return _told(lambda texts: student.probabilities(bundle, texts), bundle.labels, seconds)


def _labelled(*, winner: str, labels: int, **common: int) -> dict[str, Any]:
    """TF-IDF on the labels, on more of them that are listed first, and on as many by chance."""
    from tagsmith.distilling import ranked
    from tagsmith.model.lexical_fitting import fit_lexical
    from tagsmith.run import truth_of
    from tagsmith.teaching import taught_lexical

    lesson, _ = _lesson(winner, {}, **common)
    _, others = _rows(**common)
    names, train, seed = lesson.winner.engine.labels, lesson.labelled, common["seed"]
    texts, truth = np.array(train.texts), truth_of(train, names)
    more_texts, more_truth = np.array(lesson.texts), names.encode(others["label"].to_list())
    asked = _test()[0]

    def answers(rows: np.ndarray) -> list[str]:
        every = [*texts.tolist(), *more_texts[rows].tolist()]
        known = np.concatenate([truth, more_truth[rows]])
        lexical = fit_lexical(every, known, np.arange(len(every)), classes=len(names), seed=seed)
        return _answers(lexical.probabilities(asked), names.names)

    first = ranked(taught_lexical(lesson, seed=seed), lesson.texts, lesson.probs_NC)[:labels]
    chance = [np.random.default_rng([seed, i]).permutation(len(more_texts))[:labels] for i in range(DRAWS)]
    wrong = lesson.probs_NC.argmax(axis=1) != more_truth
    return {
        "none": answers(np.arange(0)),
        "first": answers(first),
        "chance": [answers(rows) for rows in chance],
        "wrong_first": float(wrong[first].mean()),
        "wrong": float(wrong.mean()),
    }


def _told(probabilities: Callable[[list[str]], np.ndarray], labels: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Answers to the test texts, texts a second (the best of a few passes), and how long the training took."""
    asked, taken = _test()[0], []
    for _ in range(PASSES):
        started = time.perf_counter()
        probabilities(asked[:TIMED_TEXTS])
        taken.append(time.perf_counter() - started)
    found = _answers(probabilities(asked), labels)
    return {"answers": found, "texts_per_second": TIMED_TEXTS / min(taken), "seconds": seconds}


def _answers(probs_NC: np.ndarray, labels: tuple[str, ...]) -> list[str]:
    return [labels[i] for i in probs_NC.argmax(axis=1)]


# ---- The scorer and the page


def _page(
    found: Mapping[str, Mapping[str, Any]], labelled: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace
) -> str:
    truth = np.array(_test()[1])
    lines = [_HEAD.format(**vars(arguments), machine=machine(), date=datetime.now(UTC).date(), tests=len(truth))]
    for winner, taught in found.items():
        lines += _students(winner, taught, truth)
    lines.append(_LIST.format(labels=arguments.labels, draws=DRAWS))
    for winner, one in labelled.items():
        drawn = np.mean([100 * (np.array(each) == truth).mean() for each in one["chance"]])
        apart = ", ".join(_difference(one["first"], each, truth) for each in one["chance"])
        shares = f"{100 * one['wrong_first']:.0f} % | {100 * one['wrong']:.0f} %"
        before, first = (_accuracy(one[name], truth) for name in ("none", "first"))
        lines.append(f"| {winner} | {before} | {first} | {drawn:.1f} | {apart} | {shares} |")
    return "\n".join([*lines, ""])


_HEAD = """# What a student loses, and what the list brings

Command: `python benchmarks/distillation.py --winners {winners} --seed {seed}`.
Machine: {machine}. Date: {date}. One seed.
banking77: {each} labelled rows of each of 77 labels (a tenth of them to choose by), {unlabelled} of the other
training rows without their labels, {tests} test rows. Differences are paired, in points of accuracy, with 95 %
intervals. Texts a second are those of the best of five passes by the reference engine in fp32; seconds are those of the
training, or of the teaching alone.

| winner | who answers | accuracy | minus the winner | minus TF-IDF untaught | texts a second | speed | seconds |
|---|---|---|---|---|---|---|---|"""

_LIST = """
TF-IDF without a teacher, once {labels} rows more have got their labels from the data set: those listed first, or as
many by chance (mean of {draws} draws; the difference is from each of them).

| list of | before | listed first | by chance | listed first minus chance | winner wrong, listed first | of all |
|---|---|---|---|---|---|---|"""


def _students(winner: str, taught: Mapping[str, Any], truth: np.ndarray) -> list[str]:
    """A line for the winner, one for each student, and one for TF-IDF that had no teacher."""
    best, plain = taught["winner"], taught["winner"]["tfidf"]
    lines = []
    for name, one in taught.items():
        times = f"{one['texts_per_second'] / best['texts_per_second']:.1f} times"
        loss = "" if one is best else _difference(one["answers"], best["answers"], truth)
        cells = [winner, "the winner" if one is best else f"student: {name}", _accuracy(one["answers"], truth), loss]
        cells += [_difference(one["answers"], plain, truth), f"{one['texts_per_second']:,.0f}", times]
        lines.append(f"| {' | '.join(cells)} | {one['seconds']:.0f} |")
    loss = _difference(plain, best["answers"], truth)
    return [*lines, f"| {winner} | TF-IDF untaught | {_accuracy(plain, truth)} | {loss} | | | | |"]


def _accuracy(answers: list[str], truth: np.ndarray) -> str:
    return f"{100 * (np.array(answers) == truth).mean():.1f}"


def _difference(one: list[str], two: list[str], truth: np.ndarray) -> str:
    from tagsmith.evaluation.comparison import compare_hits

    found = compare_hits(np.array(one) == truth, np.array(two) == truth, np.arange(len(truth))).difference
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


CELLS = {"winner": _winner, "student": _student, "labelled": _labelled}

if __name__ == "__main__" and not answered(CELLS):
    sys.exit(main())
