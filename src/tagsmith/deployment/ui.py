"""The web page of a server at `/ui`, and the routes that it asks beside those of the server.

The page is one file that needs nothing but this server. Its content security policy lets run what is in it and nothing
else, by the SHA-256 of its script and its style sheet; markup made from strings is off altogether (trusted types).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response

from tagsmith.data.pairs import PAIR
from tagsmith.deployment.asking import as_json, ask, remarks, versions_of
from tagsmith.deployment.bodies import Body, body_of, described
from tagsmith.deployment.classifying import Question, Result, refuse_texts
from tagsmith.deployment.corrections import Corrections, HashLog
from tagsmith.deployment.drift import collector
from tagsmith.deployment.problems import Problem
from tagsmith.deployment.versions import Versions
from tagsmith.deployment.watching import Watcher
from tagsmith.errors import ResourceError
from tagsmith.markup import style
from tagsmith.model.attribution import occlusion, pieces_of
from tagsmith.model.decision import plain_of

router = APIRouter()
keeping = APIRouter()
"""The route of corrections, which is not there where none are kept."""
_HIGHEST = 12
"""Digits of a probability; more would only be noise."""


@dataclass(frozen=True)
class Desk:
    """What a server keeps beside its answers: corrections, hashes of texts; and whether it asks for a key."""

    corrections: Corrections | None = None
    hashes: HashLog | None = None
    asks_for_key: Callable[[], bool] = lambda: False


def mount_ui(app: FastAPI, versions: Versions, desk: Desk) -> None:
    """Add the page and its routes to a server's application, and have its answers watched for drift."""
    watcher = Watcher(versions, hashes=desk.hashes)
    versions.heard = watcher.heard
    versions.metrics.registry.register(collector(lambda: watcher.monitor))
    app.state.desk, app.state.watcher = desk, watcher
    app.include_router(router)
    if desk.corrections is not None:
        app.include_router(keeping)


class AnswerBody(Body):
    """What `POST /ui/answer` takes."""

    texts: list[str]
    pairs: list[str] | None = None


class ExplainBody(Body):
    """What `POST /explain` takes: a text, and the label that is to be explained, the answer where none is named."""

    text: str
    pair: str | None = None
    label: str | None = None


class CorrectionBody(Body):
    """What `POST /corrections` takes: a text and the labels that are right for it."""

    text: str
    pair: str | None = None
    labels: list[str]


@router.get("/ui", summary="The web page", tags=["Page"])
async def page(request: Request) -> Response:
    """The page, which asks for a key itself where one is needed."""
    document, policy = assembled("needed" if _desk(request).asks_for_key() else "none")
    headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
    return Response(document, media_type="text/html; charset=utf-8", headers=headers)


@router.get("/ui/state", summary="The model, its report and its drift", tags=["Page"])
async def state(request: Request) -> Response:
    """What the page shows of the model."""
    desk, live = _desk(request), versions_of(request).current
    about, limits = live.about, live.limits
    monitor = request.app.state.watcher.monitor
    return as_json(
        {
            "model": {
                "name": about.name,
                "version": about.version,
                "engine": about.engine,
                "labels": about.labels,
                "multi_label": about.multi_label,
                "thresholds": plain_of(about.thresholds),
                "max_tokens": about.max_tokens,
                "pairs": about.pairs,
            },
            "limits": {"texts": limits.texts, "letters": limits.letters},
            "corrections": desk.corrections is not None,
            "drift": None if monitor is None else monitor.state(),
            **_told(live.launch.folder, about.digest),
        }
    )


@router.post(
    "/ui/answer",
    summary="Labels and all probabilities",
    openapi_extra=described(AnswerBody, example={"texts": ["Never again.", "Lovely."]}),
    tags=["Page"],
)
async def answer(request: Request) -> Response:
    """All that is known of each text, in the order of the labels."""
    body = await body_of(request, AnswerBody)
    answers = await ask(request, body.texts, pairs=body.pairs)
    told = [
        {
            "labels": result.labels,
            "probabilities": [round(float(p), _HIGHEST) for p in result.probs_C],
            **remarks(result),
        }
        for result in answers.results
    ]
    return as_json({"answers": told, "model_version": answers.about.version})


@router.post(
    "/explain",
    summary="The words that mattered",
    description="The text in pieces, each with its weight: by how much it raises the log-odds of the label. The text "
    "is asked again without each word, up to 64 times, so this costs as much as that many texts.",
    openapi_extra=described(ExplainBody, example={"text": "The soup was cold, but the staff were lovely."}),
    tags=["Page"],
)
async def explain(request: Request) -> Response:
    """The words that speak for a label, and those that speak against it."""
    body = await body_of(request, ExplainBody)
    first = (await ask(request, [body.text], pairs=None if body.pair is None else [body.pair])).results[0]
    labels = versions_of(request).current.about.labels
    if body.label is not None and body.label not in labels:
        raise Problem(422, "'label': the model has no such label.")
    target = labels.index(body.label) if body.label is not None else _answered(first, labels)
    asking = occlusion(body.text, target)
    texts = next(asking)
    while True:
        try:
            texts = asking.send(await _shortened(request, texts, body.pair, classes=len(labels)))
        except StopIteration as ended:
            pieces = [{"text": text, "weight": weight} for text, weight in pieces_of(body.text, ended.value)]
            return as_json({"label": labels[target], "pieces": pieces, **remarks(first)})


@keeping.post(
    "/corrections",
    summary="Keep a correction for the next training",
    openapi_extra=described(CorrectionBody, example={"text": "Not bad at all.", "labels": ["positive"]}),
    tags=["Page"],
)
async def correct(request: Request) -> Response:
    """Keep the right labels of a text."""
    kept = _desk(request).corrections
    assert kept is not None, "the route is there only where corrections are kept"
    body = await body_of(request, CorrectionBody)
    live = versions_of(request).current
    about = live.about
    if set(body.labels) - set(about.labels):
        raise Problem(422, "'labels': the model has no such label.")
    if not about.multi_label and len(body.labels) != 1:
        raise Problem(422, "'labels': expected one label.")
    if PAIR in body.text + (body.pair or ""):
        raise Problem(422, "The text holds the sign that stands between the two texts of a pair.")
    refuse_texts(Question([body.text], None if body.pair is None else [body.pair]), about, live.limits)
    try:
        count = await asyncio.to_thread(
            kept.keep, body.text, body.labels, pair=body.pair, multi_label=about.multi_label, version=about.version
        )
    except ResourceError:
        raise Problem(503, "The correction cannot be written: the disk may be full.", retry_after_s=60) from None
    return as_json({"kept": count})


# ---- The page


@cache
def assembled(key: str) -> tuple[str, str]:
    """The page as one document, and its content security policy."""
    folder = files("tagsmith.deployment").joinpath("ui_page")
    scripts = sorted(path.name for path in folder.iterdir() if path.name.endswith(".js"))
    script = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in scripts)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    sheet = style() + folder.joinpath("ui.css").read_text(encoding="utf-8")
    template = Template(folder.joinpath("ui.html").read_text(encoding="utf-8"))
    rules = {
        "default-src": "'none'",
        "script-src": _hashed(script),
        "style-src": _hashed(sheet),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    policy = "; ".join(f"{name} {value}" for name, value in rules.items())
    return template.substitute(style=sheet, script=script, key=key), policy


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# ---- What it says


def _desk(request: Request) -> Desk:
    return request.app.state.desk


def _answered(result: Result, labels: Sequence[str]) -> int:
    return labels.index(result.labels[0]) if result.labels else int(result.probs_C.argmax())


async def _shortened(request: Request, texts: Sequence[str], pair: str | None, *, classes: int) -> np.ndarray:
    """Probabilities `(N, C)` of shortened texts, NaN for what has no letter left; they count as no one's answers."""
    live = versions_of(request).current
    probs_NC = np.full((len(texts), classes), np.nan)
    filled = [i for i, text in enumerate(texts) if text.strip() or (pair or "").strip()]
    for start in range(0, len(filled), live.limits.texts):
        places = filled[start : start + live.limits.texts]
        pairs = None if pair is None else [pair] * len(places)
        answers = await live.answer(Question([texts[i] for i in places], pairs, counts=False))
        probs_NC[places] = [result.probs_C for result in answers.results]
    decimals = live.config.decimals
    if decimals is None:
        return probs_NC
    edge = 0.5 / 10**decimals  # of a probability that was rounded to 1 no more is known
    return np.clip(probs_NC, edge, 1 - edge)


@cache
def _told(folder: Path, digest: str) -> dict[str, Any]:
    """The report in a few facts, the card and the examples of a bundle; `digest` tells one version from another."""
    report = _json(folder / "report.json")
    card = folder / "README.md"
    return {
        "report": _summary(report),
        "card": _without_front_matter(card.read_text(encoding="utf-8")) if card.is_file() else None,
        "examples": _examples(folder / "probe.jsonl"),
    }


def _summary(report: Mapping[str, Any]) -> dict[str, Any]:
    test = report.get("test", {})
    measure, title = ("micro_f1", "micro F1") if test.get("kind") == "multi_label" else ("accuracy", "accuracy")
    models = {"this model": test, "TF-IDF": report.get("baselines", {}).get("tfidf", {})}
    scores = [
        {"name": name, "measure": title, **{key: found[measure].get(key) for key in ("value", "low", "high")}}
        for name, found in models.items()
        if measure in found
    ]
    return {"verdict": report.get("verdict", {}).get("text"), "rows": test.get("n"), "scores": scores}


def _without_front_matter(card: str) -> str:
    return card.split("\n---\n", 1)[-1].strip() if card.startswith("---") else card


def _examples(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
