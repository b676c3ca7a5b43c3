"""The body of a request as data: strict JSON, and the fields that a route knows. Nothing of it is ever repeated."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from tagsmith.deployment.problems import Problem

B = TypeVar("B", bound="Body")

_MOST_PROBLEMS = 3


class Body(BaseModel):
    """The fields of a request. Others are let pass: clients send many that mean nothing to a classifier."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


async def body_of(request: Request, model: type[B]) -> B:
    """The body of a request. Problem with 400 for bytes that are no JSON, with 422 for other JSON than the route's."""
    found = parse(await request.body())
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise Problem(422, _explained(error)) from None


def parse(raw: bytes) -> Any:
    """JSON in UTF-8, without NaN, without a name twice in one object, and not too deep. Problem with 400 else."""
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except UnicodeDecodeError:
        raise Problem(400, "The body is not UTF-8.") from None
    except RecursionError:
        raise Problem(400, "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise Problem(400, f"The body is no JSON: {error.msg} at byte {error.pos}.") from None
    except ValueError:  # a number of thousands of digits
        raise Problem(400, "The body holds a number that is too long.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise Problem(400, f"The body holds {name}, which is no JSON.")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Problem(400, "The body has an object that names one field twice.")
    return found


def _explained(error: ValidationError) -> str:
    """What is wrong with which fields; names of fields are the route's own, and values are left out."""
    told = []
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        name = str(each["loc"][0]) if each["loc"] else "body"
        told.append(f"'{name}': {each['msg']}")
    distinct = list(dict.fromkeys(told))
    return "; ".join(distinct[:_MOST_PROBLEMS]) + "."


def described(model: type[Body], *, example: dict[str, Any]) -> dict[str, Any]:
    """How OpenAPI describes a route's body."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    assert not definitions, "bodies are flat, so that no schema needs a place of its own"
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}
