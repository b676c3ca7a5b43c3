"""KServe's second protocol, which Triton's clients speak too: `/v2/...`, in JSON and with binary tensors."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from tagsmith.deployment.asking import as_json, ask, notes_of, versions_of
from tagsmith.deployment.bodies import Body, described, parse
from tagsmith.deployment.classifying import About, Answers
from tagsmith.deployment.problems import Problem, not_ready

router = APIRouter(prefix="/v2", tags=["KServe"])

_HEAD_LENGTH = "inference-header-content-length"
_OUTPUTS = {"label": "BYTES", "probabilities": "FP32", "logits": "FP32", "truncated": "BOOL", "abstained": "BOOL"}


class InferBody(Body):
    """What `infer` takes: a tensor `text` of strings, and for pairs one of the same shape named `text_pair`."""

    id: str | None = None
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]] | None = None
    parameters: dict[str, Any] | None = None


_INFER = {
    "summary": "Classify",
    "openapi_extra": described(
        InferBody, example={"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Never again."]}]}
    ),
}


@router.get("", summary="The server")
async def server(request: Request) -> Response:
    """Name, version and extensions of the server."""
    from tagsmith import __version__

    return as_json({"name": "tagsmith", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get("/health/live", summary="Whether the server lives")
async def live() -> Response:
    """200 as long as the server lives."""
    return as_json({"live": True})


@router.get("/health/ready", summary="Whether requests are answered")
async def ready(request: Request) -> Response:
    """200 when requests are answered."""
    if not versions_of(request).ready:
        raise not_ready("Not ready.")
    return as_json({"ready": True})


@router.get("/models/{model}", summary="The model")
@router.get("/models/{model}/versions/{version}", summary="A version of the model")
async def metadata(request: Request, model: str, version: str | None = None) -> Response:
    """Inputs and outputs of the model."""
    about = _about(request, model, version)
    outputs = [
        {"name": name, "datatype": kind, "shape": [-1, len(about.labels)] if kind == "FP32" else [-1]}
        for name, kind in _OUTPUTS.items()
    ]
    inputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in _input_names(about)]
    told = {"name": about.name, "versions": [about.version], "platform": f"tagsmith_{about.engine}"}
    return as_json(told | {"inputs": inputs, "outputs": outputs, "parameters": {"labels": list(about.labels)}})


@router.get("/models/{model}/ready", summary="Whether the model answers")
@router.get("/models/{model}/versions/{version}/ready", summary="Whether a version answers")
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """200 when the model answers."""
    about = _about(request, model, version)
    if not versions_of(request).ready:
        raise not_ready("Not ready.")
    return as_json({"name": about.name, "ready": True})


@router.post("/models/{model}/infer", **_INFER)
@router.post("/models/{model}/versions/{version}/infer", **_INFER)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Classify as KServe asks for it."""
    about = _about(request, model, version)
    body, binary = await _body(request)
    names = _wanted(body)
    texts, pairs = _inputs(body, binary, about)
    answers = await ask(request, texts, pairs=pairs)
    head = {"model_name": answers.about.name, "model_version": answers.about.version}
    head |= {"id": body.id or notes_of(request).request_id}
    return _reply(head, _tensors(answers), names)


def _about(request: Request, model: str, version: str | None) -> About:
    about = versions_of(request).current.about
    if model != about.name or version not in (None, about.version):
        raise Problem(404, f"There is no such model here; what is served is '{about.name}', version {about.version}.")
    return about


def _input_names(about: About) -> tuple[str, ...]:
    return ("text", "text_pair") if about.pairs else ("text",)


async def _body(request: Request) -> tuple[InferBody, bytes]:
    """The JSON of a request, and the tensors that follow it in the same body."""
    from pydantic import ValidationError

    raw = await request.body()
    size = request.headers.get(_HEAD_LENGTH)
    if size is not None and not (size.isdecimal() and int(size[:12]) <= len(raw)):
        raise Problem(400, f"The header {_HEAD_LENGTH} is not the length of the JSON in the body.")
    length = len(raw) if size is None else int(size)
    try:
        return InferBody.model_validate(parse(raw[:length])), raw[length:]
    except ValidationError:
        raise Problem(400, "The body is no inference request: expected 'inputs', a list of tensors.") from None


def _inputs(body: InferBody, binary: bytes, about: About) -> tuple[list[str], list[str] | None]:
    found: dict[str, list[str]] = {}
    for tensor in body.inputs:
        name, kind = tensor.get("name"), tensor.get("datatype")
        if name not in _input_names(about) or kind != "BYTES" or name in found:
            wanted = " and ".join(_input_names(about))
            raise Problem(400, f"Expected one tensor of BYTES named {wanted}; see the model's metadata.")
        found[str(name)], binary = _strings(tensor, binary)
    if set(found) != set(_input_names(about)) or binary:
        raise Problem(400, f"Expected the inputs {', '.join(_input_names(about))}, and nothing after them.")
    pairs = found.get("text_pair")
    if pairs is not None and len(pairs) != len(found["text"]):
        raise Problem(400, "The tensors text and text_pair differ in length.")
    return found["text"], pairs


def _strings(tensor: dict[str, Any], binary: bytes) -> tuple[list[str], bytes]:
    """The strings of a tensor, from its data or from the front of what follows the JSON; and what is left of that."""
    parameters = tensor.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        texts = _flat(tensor.get("data"))
    else:
        if type(size) is not int or not 0 <= size <= len(binary):
            raise Problem(400, "'binary_data_size' is not the size of the tensor in the body.")
        texts, binary = _unpacked(binary[:size]), binary[size:]
    shape = tensor.get("shape")
    counted = isinstance(shape, list) and all(type(n) is int and 0 <= n <= len(texts) for n in shape)
    if not counted or math.prod(shape) != len(texts):
        raise Problem(400, "The shape of a tensor is not that of its data.")
    return texts, binary


def _flat(data: Any) -> list[str]:
    """The strings of a tensor's data, nested or not."""
    rows = data if isinstance(data, list) else [None]
    flat = [each for row in rows for each in (row if isinstance(row, list) else [row])]
    if not all(isinstance(each, str) for each in flat):
        raise Problem(400, "A tensor of BYTES holds something else than strings.")
    return flat


def _unpacked(raw: bytes) -> list[str]:
    """Strings that stand in a row, each after its length in 4 bytes."""
    texts, start = [], 0
    while start < len(raw):
        stop = start + 4
        if stop > len(raw):
            raise Problem(400, "A tensor of BYTES ends within the length of a string.")
        (size,) = struct.unpack_from("<I", raw, start)
        if stop + size > len(raw):
            raise Problem(400, "A tensor of BYTES ends within a string.")
        try:
            texts.append(raw[stop : stop + size].decode("utf-8"))
        except UnicodeDecodeError:
            raise Problem(400, "A tensor of BYTES holds a string that is not UTF-8.") from None
        start = stop + size
    return texts


def _wanted(body: InferBody) -> dict[str, bool]:
    """The outputs that were asked for, and whether each is to be binary."""
    everything = bool((body.parameters or {}).get("binary_data_output"))
    if not body.outputs:
        return {name: everything for name in ("label", "probabilities", "truncated", "abstained")}
    wanted: dict[str, bool] = {}
    for output in body.outputs:
        name, parameters = str(output.get("name")), output.get("parameters") or {}
        if name not in _OUTPUTS or not isinstance(parameters, dict):
            raise Problem(400, f"Unknown output; known are {', '.join(_OUTPUTS)}.")
        wanted[name] = bool(parameters.get("binary_data", everything))
    return wanted


def _tensors(answers: Answers) -> dict[str, list[Any] | np.ndarray]:
    results = answers.results
    return {
        # Where a text may have several labels, they are a JSON list: a name may hold any separator.
        "label": [json.dumps(result.labels) if answers.about.multi_label else result.label or "" for result in results],
        "probabilities": np.array([result.probs_C for result in results], dtype="<f4"),
        "logits": np.array([result.logits_C for result in results], dtype="<f4"),
        "truncated": np.array([result.truncated for result in results]),
        "abstained": np.array([result.abstained for result in results]),
    }


def _reply(head: dict[str, Any], tensors: dict[str, Any], names: dict[str, bool]) -> Response:
    described, binary = [], b""
    for name, as_bytes in names.items():
        values = tensors[name]
        shape = [len(values)] if isinstance(values, list) else list(values.shape)
        tensor: dict[str, Any] = {"name": name, "datatype": _OUTPUTS[name], "shape": shape}
        if as_bytes:
            raw = _packed(values)
            binary += raw
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            tensor["data"] = values if isinstance(values, list) else values.ravel().tolist()
        described.append(tensor)
    text = json.dumps(head | {"outputs": described}).encode()
    if not binary:
        return Response(text, media_type="application/json")
    headers = {_HEAD_LENGTH: str(len(text))}
    return Response(text + binary, media_type="application/octet-stream", headers=headers)


def _packed(values: list[str] | np.ndarray) -> bytes:
    if isinstance(values, np.ndarray):
        return values.tobytes()
    raw = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(each)) + each for each in raw)
