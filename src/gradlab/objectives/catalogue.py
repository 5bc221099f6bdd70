"""docs/OBJECTIVES.md, written from the registry."""

from __future__ import annotations

import inspect

from gradlab.objectives.base import OBJECTIVES, Objective

_HEAD = """# Objectives

Written by `python -m gradlab.objectives > docs/OBJECTIVES.md` from the code; edit the docstrings there.

An objective takes a completion and its example and gives a finite number in its range, with an outcome: `right`,
`wrong`, `unparseable` or `graded` (a point on a scale). An empty completion is unparseable and has the least value
of every objective. On prompts of other tasks than its own an objective has no value, which is not 0. A version
counts the changes of meaning; it enters the identity of every run.

```yaml
objectives:
  brevity: {weight: 0.5, params: {target_words: 8}}
  very_brief: {kind: brevity, params: {target_words: 3}}   # the same objective again, other parameters
```
"""


def document() -> str:
    """The Markdown page: each objective's meaning, range, tasks, fields it reads, and parameters."""
    return "\n".join([_HEAD, *(_section(name, OBJECTIVES[name]) for name in OBJECTIVES.names())])


def _section(name: str, kind: type[Objective]) -> str:
    default = kind()
    tasks = "all" if kind.tasks is None else ", ".join(sorted(kind.tasks))
    fields = ", ".join(f"`{key}` ({type_.__name__})" for key, type_ in kind.needs.items()) or "none"
    lines = [
        f"## {name}\n",
        inspect.getdoc(kind) or "",
        f"\nRange {default.low:g} to {default.high:g} (at the defaults). Tasks: {tasks}. "
        f"Example fields: {fields}. Version {OBJECTIVES.version(name)}.\n",
    ]
    if kind.model_fields:
        lines += ["| parameter | default | meaning |", "|---|---|---|"]
        for parameter, field in kind.model_fields.items():
            value = list(field.default) if isinstance(field.default, tuple) else field.default
            lines.append(f"| `{parameter}` | `{value}` | {field.description} |")
        lines.append("")
    return "\n".join(lines)
