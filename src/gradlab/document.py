"""Write config/schema.json and docs/CONFIG.md from the models: `python -m gradlab.document`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gradlab.config import BaseConfig, RunConfig
from gradlab.explain import branches
from gradlab.store import write_text
from gradlab.sweep_file import SweepConfig, WorkflowConfig

FILES: list[tuple[type[BaseModel], str]] = [
    (WorkflowConfig, "`config/config.yaml`"),
    (SweepConfig, "`config/sweeps/<sweep>.yaml`"),
    (RunConfig, "A run: what `fixed`, `grid` and `variants` set"),
    (BaseConfig, "`config/bases/<name>.yaml`"),
]


def schema() -> str:
    """JSON Schema of all four, under `$defs`."""
    _, definitions = models_json_schema([(model, "validation") for model, _ in FILES], title="gradlab configuration")
    return json.dumps(definitions, indent=2) + "\n"


def page() -> str:
    """docs/CONFIG.md: a table for each file, one row a key."""
    lines = [
        "# Configuration",
        "",
        "Every key, its default and its meaning, written by `python -m gradlab.document` from the models.",
        "Unknown keys are errors.",
    ]
    for model, title in FILES:
        lines += ["", f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{key}` | {kind} | {default} | {text} |" for key, kind, default, text in _rows(model)]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every key; a key that only some branches of a union have names them."""
    properties = model.model_json_schema()["properties"]
    rows = []
    for name, field in model.model_fields.items():
        inner, step = branches(field.annotation)
        if not inner:
            default = "required" if field.is_required() else f"`{json.dumps(properties[name].get('default'))}`"
            rows.append(
                (f"{prefix}{name}", _kind(properties[name]), default, _cell(field.description or model.__doc__ or ""))
            )
            continue
        tables = {branch: _rows(branch, f"{prefix}{name}{step}.") for branch in inner}
        for row in dict.fromkeys(row for table in tables.values() for row in table):
            having = [branch.__name__ for branch, table in tables.items() if row in table]
            only = f" ({', '.join(having)} only)" if len(having) < len(inner) else ""
            rows.append((*row[:3], row[3] + only))
    return rows


def _kind(schema: dict[str, Any]) -> str:
    """The type of a key with its limits, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema)
    kind = {"object": "mapping", "array": "list"}.get(schema.get("type", ""), schema.get("type", "any"))
    return f"{kind} {limits}".strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    write_text("config/schema.json", schema())
    write_text("docs/CONFIG.md", page())
