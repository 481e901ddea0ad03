"""The page at /docs: the OpenAPI document as plain HTML, without scripts and without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Any, Final

import msgspec

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --ink: light-dark(#1b1f24, #e6e6e3);
        --paper: light-dark(#fff, #17191c); --accent: light-dark(#0b57a4, #7db7f5); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 6rem; max-width: 60rem; font: 16px/1.55 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); }
code, pre { font: 0.875em/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .75rem 1rem; background: var(--soft); border-radius: .4rem; }
h1 { font-size: 1.8rem; margin: 0; } h2 { margin: 3rem 0 1rem; text-transform: capitalize; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
summary { padding: .6rem .9rem; cursor: pointer; display: flex; gap: .8rem; flex-wrap: wrap; align-items: baseline; }
details > div { padding: 0 .9rem .9rem; }
.verb { font-weight: 700; min-width: 4.2em; } .id { opacity: .7; margin-left: auto; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .3rem .5rem .3rem 0;
vertical-align: top; border-top: 1px solid var(--line); } th { font-weight: 600; }
""".strip()
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

Schema = dict[str, Any]


def render(document: Schema) -> tuple[bytes, str]:
    """The page of a document, and its Content-Security-Policy."""
    info = document["info"]
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag[operation["tags"][0]].append(_operation(method, path, operation, document))
    sections = [f"<h2>{escape(tag)}</h2>\n" + "\n".join(entries) for tag, entries in by_tag.items()]
    shapes = [_shape(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    html = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(info['title'])} {escape(info['version'])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>\n"
        f'<p>{escape(info["description"])}</p>\n<p><a href="/openapi.json">openapi.json</a></p>\n'
        + "\n".join(sections)
        + "\n<h2>shapes</h2>\n"
        + "\n".join(shapes)
        + "\n</body>\n</html>\n"
    )
    return html.encode(), POLICY


def _operation(method: str, path: str, operation: Schema, document: Schema) -> str:
    identity = escape(operation["operationId"])
    parts = [f"<p>{escape(operation['description'])}</p>"] if "description" in operation else []
    scope = operation.get("x-duly-scope")
    parts.append(f"<p>Needs the scope <code>{escape(scope)}</code>.</p>" if scope else "<p>Open to everyone.</p>")
    rows = [
        _row(f"{each['name']} ({each['in']})", _named(each["schema"]), each.get("description", ""))
        for each in operation["parameters"]
    ]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(_row("body", _named(content["schema"]), media))
    parts.append(_table("asks", rows))
    answers = []
    for status, returns in operation["responses"].items():
        returns = _resolved(returns, document)
        for media, content in returns.get("content", {"": {"schema": {}}}).items():
            answers.append(_row(status, _named(content["schema"]), f"{returns['description']} {media}"))
    parts.append(_table("answers", answers))
    return (
        f'<details id="{identity}"><summary><code class="verb">{method.upper()}</code> <code>{escape(path)}</code>'
        f' <span>{escape(operation["summary"])}</span> <code class="id">{identity}</code></summary>'
        f"<div>{''.join(parts)}</div></details>"
    )


def _resolved(node: Schema, document: Schema) -> Schema:
    reference = node.get("$ref")
    if reference is None:
        return node
    found: Any = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    resolved: Schema = found
    return resolved


def _shape(name: str, schema: Schema) -> str:
    text = msgspec.json.format(msgspec.json.encode(schema), indent=2).decode()
    return (
        f'<details id="shape-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<div><pre>{escape(text)}</pre></div></details>"
    )


def _named(schema: Schema) -> str:
    """A schema in a few words, as HTML."""
    reference = schema.get("$ref")
    if reference is not None:
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#shape-{name}">{name}</a>'
    if "enum" in schema:
        return escape(" | ".join(str(value) for value in schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_named(schema.get('items', {}))}"
    return escape(str(schema.get("format") or schema.get("type", "")))


def _row(name: str, kind: str, text: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(text)}</td></tr>"


def _table(title: str, rows: list[str]) -> str:
    return f"<table><tr><th>{title}</th><th></th><th></th></tr>{''.join(rows)}</table>" if rows else ""
