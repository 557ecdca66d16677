"""The page of the operations, for people, without an asset from anywhere else. The live one is `gateway.assets`."""

import html
import json
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
pre, code { font-family: ui-monospace, monospace; font-size: .9em; }
pre { padding: .75rem 1rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .4rem;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
section { border-top: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
h3 code { font-size: 1.05em; }
"""


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def docs(document: dict[str, Any]) -> str:
    """The page at /docs, from the document."""
    operations = [
        _operation(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in document["components"]["schemas"].items()]
    about = "".join(f"<p>{_text(part)}</p>" for part in document["info"]["description"].split("\n\n"))
    return _page(
        "Gridmesh API",
        f"<main><h1>Gridmesh API {_text(document['info']['version'])}</h1>{about}"
        f'<p>For machines: <a href="/openapi.json">/openapi.json</a></p>'
        f"<h2>Operations</h2>{''.join(operations)}<h2>Types</h2>{''.join(schemas)}</main>",
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<section id="{operation["operationId"]}"><h3><code>{method.upper()} {_text(path)}</code></h3>',
        f"<p>{_text(operation['summary'])} {_text(operation.get('description', ''))}</p>",
    ]
    rows = [
        (f"{each['name']} ({each['in']}{', required' if each['required'] else ''})", each["description"])
        for each in operation.get("parameters", ())
    ]
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        rows.append(("body" + (" (required)" if body["required"] else ""), _kind(content["schema"])))
    if rows:
        parts.append(_table("Takes", "", rows))
    if body and "example" in content:
        parts.append(f"<pre>{_text(json.dumps(content['example'], indent=2))}</pre>")
    replies = [(status, _reply(reply)) for status, reply in operation["responses"].items()]
    parts += [_table("Gives", "", replies), "</section>"]
    return "".join(parts)


def _reply(reply: dict[str, Any]) -> str:
    kinds = [f"{_kind(content['schema'])} as {media}" for media, content in reply.get("content", {}).items()]
    headers = f" Headers: {', '.join(reply['headers'])}." if "headers" in reply else ""
    said = f" ({', '.join(kinds)})" if kinds else ""
    return f"{reply['description']}{said}{headers}"


def _schema(name: str, schema: dict[str, Any]) -> str:
    said = _text(schema.get("description", ""))
    about = f'<section id="type-{_text(name)}"><h3><code>{_text(name)}</code></h3><p>{said}</p>'
    if "enum" in schema:
        return f"{about}<p><code>{_text(', '.join(schema['enum']))}</code></p></section>"
    required = schema.get("required", ())
    rows = [
        (f"{field} ({_kind(of)}{', required' if field in required else ''})", _description(of))
        for field, of in schema.get("properties", {}).items()
    ]
    return f"{about}{_table('Field', 'Meaning', rows)}</section>"


def _description(schema: dict[str, Any]) -> str:
    found = schema.get("description") or next(
        (each["description"] for each in schema.get("anyOf", ()) if "description" in each), ""
    )
    return str(found)


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"] if each.get("type") != "null")
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or ", ".join(map(str, schema.get("enum", ()))))


def _table(first: str, second: str, rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td><code>{_text(a)}</code></td><td>{_text(b)}</td></tr>" for a, b in rows)
    return f'<table><thead><tr><th scope="col">{first}</th><th scope="col">{second}</th></tr></thead>{cells}</table>'


def _text(text: str) -> str:
    return html.escape(text)
