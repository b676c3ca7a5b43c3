"""What a server says of itself: whether it lives and answers, what it serves, its counters, and how to ask it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from tagsmith.deployment.api_page import draw
from tagsmith.deployment.asking import as_json, versions_of
from tagsmith.deployment.limits import MOST_LINE_BYTES
from tagsmith.deployment.live_model import LiveModel
from tagsmith.deployment.metrics import CONTENT_TYPE
from tagsmith.deployment.problems import not_ready
from tagsmith.model.decision import plain_of

router = APIRouter(tags=["Tagsmith"])


@router.get("/health", summary="Whether the server lives")
async def health() -> Response:
    """200 as long as the server lives, whatever its engine does."""
    return as_json({"status": "ok"})


@router.get("/ready", summary="Whether requests are answered")
async def ready(request: Request) -> Response:
    """200 when requests are answered; 503 while a bundle is loaded, an engine comes back, or the server stops."""
    versions = versions_of(request)
    if not versions.ready:
        raise not_ready("The server is stopping." if versions.draining else "The engine is being started.")
    return as_json({"status": "ready"})


@router.get("/info", summary="What is served, and its limits")
async def info(request: Request) -> Response:
    """Name, version, labels, engine and limits."""
    from tagsmith import __version__

    versions = versions_of(request)
    told = _told(versions.current)
    others = {role: _told(model) for role, model in versions.others.items()}
    return as_json(told | {"tagsmith": __version__, "ready": versions.ready, "others": others})


@router.get("/metrics", summary="Counters for Prometheus")
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' own format."""
    versions = versions_of(request)
    versions.metrics.ready.set(versions.ready)
    return Response(versions.metrics.text(), headers={"content-type": CONTENT_TYPE})


@router.get("/docs", summary="This page", include_in_schema=False)
async def docs(request: Request) -> Response:
    """All routes, drawn without a script and without the network."""
    headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
    page = draw(request.app.openapi(), address=str(request.base_url).rstrip("/"))
    return Response(page, media_type="text/html", headers=headers)


@router.get("/", include_in_schema=False)
async def root() -> Response:
    """To the page, for who opens the address in a browser."""
    return Response(status_code=307, headers={"location": "ui"})


def _told(model: LiveModel) -> dict[str, Any]:
    about, limits, config = model.about, model.limits, model.config
    return {
        "name": about.name,
        "version": about.version,
        "sha256": about.digest,
        "engine": about.engine,
        "labels": list(about.labels),
        "multi_label": about.multi_label,
        "thresholds": plain_of(about.thresholds),
        "abstention": about.proof,
        "pairs": about.pairs,
        "max_tokens": about.max_tokens,
        "long_texts": about.long_texts,
        "flagged": list(config.flagged),
        "limits": {
            "texts": limits.texts,
            "letters": limits.letters,
            "body_bytes": limits.body_bytes,
            "line_bytes": MOST_LINE_BYTES,
            "queue_texts": limits.queue_texts,
            "queue_tokens": limits.queue_tokens,
            "timeout_s": limits.timeout_s,
        },
    }
