"""The page at `/docs`: every route with what it takes and a line for curl, without a script and without the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.6rem } h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem } code, pre { font: 0.9rem/1.4 monospace }
pre { background: #f3f3f0; padding: 0.7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
.verb { display: inline-block; min-width: 3.2rem; font-weight: 700 } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid #ddd }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #eee } pre { background: #262626 } }
"""


def draw(schema: Mapping[str, Any], *, address: str) -> str:
    """The page for an OpenAPI description of the server at an address."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><title>Tagsmith: routes</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        "<h1>Routes of this server</h1>",
        "<p>Where keys are set, each request carries one: <code>Authorization: Bearer KEY</code>.</p>",
        '<p>The same as data: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, verbs in schema["paths"].items():
        parts += [_route(path, verb, told, address + path) for verb, told in verbs.items()]
    return "\n".join([*parts, "</body></html>"])


def _route(path: str, verb: str, told: Mapping[str, Any], url: str) -> str:
    parts = [f'<h2><span class="verb">{escape(verb.upper())}</span> <code>{escape(path)}</code></h2>']
    parts.append(f"<p>{escape(told.get('summary', ''))}. {escape(told.get('description', ''))}</p>")
    content = told.get("requestBody", {}).get("content", {})
    for media, body in content.items():
        parts += [_fields(body.get("schema", {})), _curl(url, media, body.get("example"))]
    if not content:
        parts.append(f"<pre>curl {escape(url)}</pre>")
    return "\n".join(part for part in parts if part)


def _fields(schema: Mapping[str, Any]) -> str:
    properties = schema.get("properties", {})
    if not properties:
        return ""
    needed = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{'needed' if name in needed else ''}</td>"
        f"<td>{escape(_kind(told))}</td></tr>"
        for name, told in properties.items()
    )
    return f"<table><thead><tr><th>field</th><th></th><th>type</th></tr></thead><tbody>{rows}</tbody></table>"


def _kind(told: Mapping[str, Any]) -> str:
    if "anyOf" in told:
        return " or ".join(dict.fromkeys(_kind(each) for each in told["anyOf"]))
    if "enum" in told:
        return ", ".join(map(str, told["enum"]))
    if told.get("type") == "array":
        return f"list of {_kind(told.get('items', {}))}"
    return str(told.get("type", "anything"))


def _curl(url: str, media: str, example: Any) -> str:
    if example is None:
        return ""
    body = example if isinstance(example, str) else json.dumps(example)
    flag = "--data-binary" if isinstance(example, str) else "-d"
    line = f"curl {url} -H 'content-type: {media}' {flag} '{body}'"
    return f"<pre>{escape(line)}</pre>"
