"""The routes of Hugging Face's clients: its inference API at `/`, its text-embeddings server, and SageMaker."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from tagsmith.deployment.asking import as_json, ask, remarks, versions_of
from tagsmith.deployment.bodies import Body, body_of, described
from tagsmith.deployment.classifying import Answers, Function, ranked
from tagsmith.deployment.problems import Problem, not_ready

router = APIRouter()

_NESTED = "A list of labels with their scores, the best first, for each text."


class InferenceBody(Body):
    """What `POST /` takes. A list of `inputs` is a batch; a pair is `{"text": ..., "text_pair": ...}`."""

    inputs: str | dict[str, str] | list[str | dict[str, str]]
    parameters: dict[str, Any] | None = None


class Parameters(Body):
    """What `parameters` of `POST /` may hold."""

    top_k: int | None = Field(None, ge=1)
    function_to_apply: Function | None = None
    truncation: bool | None = None
    details: bool = False


class PredictBody(Body):
    """What `POST /predict` takes: a text, `[text, second]` for one pair, or a list of `[text]` or `[text, second]`."""

    inputs: str | list[str] | list[list[str]]
    truncate: bool | None = None
    truncation_direction: str | None = Field(None, pattern="^([Rr]ight|[Ll]eft)$")
    raw_scores: bool = False


@router.post(
    "/",
    summary="Hugging Face's inference API",
    description=f"{_NESTED} The answer is nested for a single text too, as InferenceClient reads it.",
    openapi_extra=described(InferenceBody, example={"inputs": "Never again.", "parameters": {"top_k": 2}}),
    tags=["Hugging Face"],
)
async def infer(request: Request) -> Response:
    """Classify as Hugging Face's inference API does."""
    body = await body_of(request, InferenceBody)
    parameters = _parameters(body)
    inputs = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    texts, pairs = _texts_of(inputs)
    answers = await ask(request, texts, pairs=pairs, truncate=parameters.truncation is not False)
    function, top_k = parameters.function_to_apply, parameters.top_k
    return as_json(_ranked(answers, function=function, top_k=top_k, details=parameters.details))


@router.post(
    "/predict",
    summary="Text Embeddings Inference",
    description=f"{_NESTED} One text or one pair gets a flat list.",
    openapi_extra=described(PredictBody, example={"inputs": [["Never again."], ["Lovely."]]}),
    tags=["Hugging Face"],
)
@router.post(
    "/invocations",
    summary="SageMaker",
    description="The same as /predict.",
    openapi_extra=described(PredictBody, example={"inputs": "Never again."}),
    tags=["SageMaker"],
)
async def predict(request: Request) -> Response:
    """Classify as Text Embeddings Inference does."""
    body = await body_of(request, PredictBody)
    texts, pairs, one = _unpacked(body.inputs)
    _refuse_direction(body.truncation_direction, versions_of(request).current.about.long_texts)
    answers = await ask(request, texts, pairs=pairs, truncate=body.truncate is not False)
    found = _ranked(answers, function="none" if body.raw_scores else None)
    return as_json(found[0] if one else found)


@router.get("/ping", summary="SageMaker's question whether requests are answered", tags=["SageMaker"])
async def ping(request: Request) -> Response:
    """200 when requests are answered."""
    if not versions_of(request).ready:
        raise not_ready("Not ready.")
    return as_json({})


def _parameters(body: InferenceBody) -> Parameters:
    from pydantic import ValidationError

    try:
        return Parameters.model_validate(body.parameters or {})
    except ValidationError as error:
        names = sorted({str(each["loc"][0]) for each in error.errors()} & set(Parameters.model_fields))
        raise Problem(422, f"'parameters' is not as expected in: {', '.join(names)}.") from None


def _ranked(
    answers: Answers, *, function: Function | None = None, top_k: int | None = None, details: bool = False
) -> list[list[dict[str, Any]]]:
    found = [ranked(result, answers.about, top_k=top_k, function=function) for result in answers.results]
    if not details:
        return found
    more = [remarks(result) | {"model_version": answers.about.version} for result in answers.results]
    return [[each | told for each in labels] for labels, told in zip(found, more, strict=True)]


def _texts_of(inputs: list[str | dict[str, str]]) -> tuple[list[str], list[str] | None]:
    """Texts, and second texts where all are pairs."""
    pairs = [each for each in inputs if isinstance(each, dict)]
    if not pairs:
        return [each for each in inputs if isinstance(each, str)], None
    fits = all("text" in pair and set(pair) <= {"text", "text_pair"} for pair in pairs)
    two_sided = {"text_pair" in pair for pair in pairs}
    if len(pairs) < len(inputs) or not fits or len(two_sided) > 1:
        raise Problem(422, '\'inputs\': expected all texts, or all of them {"text": ..., "text_pair": ...}.')
    return [pair["text"] for pair in pairs], [pair["text_pair"] for pair in pairs] if True in two_sided else None


def _unpacked(inputs: str | list[str] | list[list[str]]) -> tuple[list[str], list[str] | None, bool]:
    """Texts, second texts where they are pairs, and whether it is one text or one pair."""
    if isinstance(inputs, str):
        return [inputs], None, True
    if inputs and isinstance(inputs[0], str):
        if len(inputs) != 2:
            raise Problem(
                422,
                "'inputs': a list of two texts is one pair; expected two, or a list for each text, as in "
                '[["first"], ["second"]].',
            )
        first, second = inputs
        return [str(first)], [str(second)], True
    sizes = {len(each) for each in inputs}
    if sizes == {1}:
        return [each[0] for each in inputs], None, False
    if sizes == {2}:
        return [each[0] for each in inputs], [each[1] for each in inputs], False
    raise Problem(422, "'inputs': expected lists of one text each, or of two each.")


def _refuse_direction(asked: str | None, long_texts: str) -> None:
    """Problem for a side to cut that is not the one which the classifier was trained with."""
    own = {"head": "right", "tail": "left"}.get(long_texts)
    if asked is not None and asked.lower() != own:
        raise Problem(422, f"'truncation_direction': this classifier reads the {long_texts} of a long text.")
