"""The routes of vLLM's, SGLang's and OpenAI's clients: `/classify`, `/v1/classify`, `/v1/moderations`, `/v1/models`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from tagsmith.deployment.asking import as_json, ask, notes_of, remarks, versions_of
from tagsmith.deployment.bodies import Body, body_of, described
from tagsmith.deployment.classifying import About, Answers, Result, scores
from tagsmith.deployment.problems import Problem

router = APIRouter(tags=["OpenAI and vLLM"])

_STOCK = ("omni-moderation", "text-moderation")
"""Names that OpenAI's own clients send when nobody names a model."""


class ClassifyBody(Body):
    """What `POST /classify` takes. Lists of token ids are refused: they could hold control tokens."""

    input: Any = None
    messages: Any = None
    model: str | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None


class ModerationBody(Body):
    """What `POST /v1/moderations` takes: a text, a list of texts, or a list of `{"type": "text", "text": ...}`."""

    input: str | list[str] | list[dict[str, Any]]
    model: str | None = None


_CLASSIFY = {
    "openapi_extra": described(ClassifyBody, example={"input": ["Never again."], "truncate_prompt_tokens": -1}),
    "description": "The likeliest label and all probabilities of each text. A text that is too long is refused unless "
    "`truncate_prompt_tokens` is -1.",
}


@router.post("/classify", summary="vLLM", **_CLASSIFY)
@router.post("/v1/classify", summary="vLLM, SGLang, Dynamo", **_CLASSIFY)
async def classify(request: Request) -> Response:
    """Classify as vLLM does."""
    body = await body_of(request, ClassifyBody)
    about = versions_of(request).current.about
    _refuse_model(body.model, about)
    _refuse_options(body, about)
    texts = _texts_of(body.input)
    try:
        answers = await ask(request, texts, truncate=body.truncate_prompt_tokens is not None)
    except Problem as problem:
        # vLLM's clients know 400 for what is wrong with a text.
        raise Problem(400, problem.message, problem.reason) if problem.status == 422 else problem from None
    raw = body.use_activation is False
    return as_json(
        {
            "id": f"classify-{notes_of(request).request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": answers.about.name,
            "data": [_classified(place, result, answers.about, raw) for place, result in enumerate(answers.results)],
            "usage": _usage(answers),
            "model_version": answers.about.version,
        }
    )


@router.post(
    "/v1/moderations",
    summary="OpenAI's moderations",
    description="Each label as a category. With several labels a text those from their thresholds on are flagged; else "
    "those that the setting `deployment.flagged` names.",
    openapi_extra=described(ModerationBody, example={"input": "Never again."}),
)
async def moderations(request: Request) -> Response:
    """Classify as OpenAI's moderations do."""
    body = await body_of(request, ModerationBody)
    current = versions_of(request).current
    if body.model is not None and not body.model.startswith(_STOCK):
        _refuse_model(body.model, current.about)
    flagged = frozenset(current.config.flagged)
    if not current.about.multi_label and not flagged:
        raise Problem(
            422,
            "This classifier gives each text one label. Name those that count as flagged in the setting "
            "deployment.flagged when the server is started.",
        )
    answers = await ask(request, _moderated_texts(body.input))
    return as_json(
        {
            "id": f"modr-{notes_of(request).request_id}",
            "model": answers.about.name,
            "results": [_moderated(result, answers.about, flagged) for result in answers.results],
            "model_version": answers.about.version,
        }
    )


@router.get("/v1/models", summary="What is served")
async def models(request: Request) -> Response:
    """The one model that is served, as OpenAI lists models."""
    about = versions_of(request).current.about
    card = {"id": about.name, "object": "model", "owned_by": "tagsmith", "root": about.version}
    return as_json({"object": "list", "data": [card]})


def _classified(place: int, result: Result, about: About, raw: bool) -> dict[str, Any]:
    probs = [float(p) for p in scores(result, about, "none" if raw else None)]
    best = result.label or about.labels[int(result.probs_C.argmax())]
    found = {"index": place, "label": best, "probs": probs, "num_classes": len(about.labels)}
    return found | ({"labels": list(result.labels)} if about.multi_label else {}) | remarks(result)


def _moderated(result: Result, about: About, flagged: frozenset[str]) -> dict[str, Any]:
    found = frozenset(result.labels)
    return {
        "flagged": bool(found) if about.multi_label else bool(found & flagged),
        "categories": {label: label in found for label in about.labels},
        "category_scores": dict(zip(about.labels, map(float, result.probs_C), strict=True)),
        "category_applied_input_types": {label: ["text"] for label in about.labels},
        **remarks(result),
    }


def _usage(answers: Answers) -> dict[str, Any]:
    counts = {"prompt_tokens": answers.tokens, "total_tokens": answers.tokens, "completion_tokens": 0}
    return counts | {"prompt_tokens_details": None}


def _texts_of(given: Any) -> list[str]:
    texts = given if isinstance(given, list) else [given]
    if texts and all(isinstance(text, str) for text in texts):
        return texts
    raise Problem(400, "'input': expected a text or a list of texts. Token ids are not taken.")


def _moderated_texts(given: str | list[Any]) -> list[str]:
    parts = [given] if isinstance(given, str) else given
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise Problem(422, "'input': expected texts; this classifier reads nothing else.")
    return texts


def _refuse_model(asked: str | None, about: About) -> None:
    if asked not in (None, "", about.name):
        raise Problem(404, f"There is no such model here; the one that is served is '{about.name}'.")


def _refuse_options(body: ClassifyBody, about: About) -> None:
    """Problem for what vLLM knows and a bundle cannot do otherwise than it was trained."""
    if body.messages is not None:
        raise Problem(400, "'messages': a classifier reads texts. Send them as 'input'.")
    if not body.add_special_tokens:
        raise Problem(400, "'add_special_tokens': texts are read as they were in training, with these tokens.")
    if body.truncate_prompt_tokens not in (None, -1, about.max_tokens):
        raise Problem(
            400, f"'truncate_prompt_tokens': expected -1 or {about.max_tokens}, which is what this classifier reads."
        )
    own = {"head": "right", "tail": "left"}.get(about.long_texts)
    if body.truncation_side is not None and body.truncation_side != own:
        raise Problem(400, f"'truncation_side': this classifier reads the {about.long_texts} of a long text.")
