"""pydantic's errors as sentences a user can act on: dotted path, what was expected, what was found, the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from gradlab.registry import unknown

M = TypeVar("M", bound=BaseModel)


def branches(annotation: Any) -> tuple[list[type[BaseModel]], str]:
    """The models that a field holds (several: a union) and what a key adds to reach them: `` or `.<name>`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], ""
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        return branches(args[1])[0], ".<name>"
    return [arg for arg in args if isinstance(arg, type) and issubclass(arg, BaseModel)], ""


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every settable key of a model, dotted: `optimizer.lr`; `<name>` stands for a key the user chooses."""
    for name, field in model.model_fields.items():
        inner, step = branches(field.annotation)
        if not inner:
            yield f"{prefix}{name}{step}"
        for branch in inner:
            yield from dotted_keys(branch, f"{prefix}{name}{step}.")


def unknown_key(key: str, model: type[BaseModel]) -> str | None:
    """The message for a dotted key that `model` does not have; None when it has it."""
    parts = key.split(".")
    known = []
    for pattern in dict.fromkeys(dotted_keys(model)):
        names = pattern.split(".")
        for i, (name, part) in enumerate(zip(names, parts, strict=False)):
            if name == "<name>" and names[:i] == parts[:i]:
                names[i] = part
        if names[: len(parts)] == parts[: len(names)] and (len(parts) <= len(names) or pattern.endswith("<name>")):
            return None
        known.append(".".join(names))
    candidates = dict.fromkeys([*known, *(".".join(k.split(".")[: len(parts)]) for k in known)])
    near = [k for k in known if k.split(".")[-1] == parts[-1]] or difflib.get_close_matches(key, candidates, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "docs/CONFIG.md lists all keys."
    return f"{key}: expected a known key; found {key!r}. {hint}"


def explain(error: ValidationError, prefix: str, model: type[BaseModel]) -> list[str]:
    """One line a wrong value of `model`. `prefix` is the dotted path of the model itself, empty for a whole file."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        key = ".".join(_location(item["loc"]))
        path = ".".join(part for part in (prefix, key) if part)
        if item["type"] == "extra_forbidden":
            missing = unknown_key(key, model) or (
                f"{key}: expected a key that goes with the other values of {key.rpartition('.')[0]!r}; "
                f"found {item['loc'][-1]!r}, a key of another choice. Remove it."
            )
            line = f"{prefix}.{missing}" if prefix else missing
        else:
            line = _sentence(path, item["type"], item["msg"], item["input"], item.get("ctx", {}))
        if item["type"] == "literal_error" and path in lines:  # the other branch of a union: a number or `auto`
            expected, _, found = lines[path].partition("; found ")
            line = lines[path] = f"{expected.partition(', ')[0]} or {item['ctx']['expected']}; found {found}"
        lines.setdefault(path, line)
    return list(lines.values())


def validate(model: type[M], values: Any) -> M:
    """`model` of `values`. Raises ValueError with one readable line a wrong value."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(explain(error, "", model))) from None


def _location(loc: tuple[int | str, ...]) -> list[str]:
    """The path as the user wrote it: without pydantic's names for the branches of a union."""
    parts = [str(part) for part in loc]
    if parts[:1] in (["algorithm"], ["weighting"]):
        del parts[1:2]
    return [part for part in parts if "[" not in part and part != "constrained-int"]


def _sentence(path: str, kind: str, message: str, found: Any, context: dict[str, Any]) -> str:
    if kind == "value_error":
        text = message.removeprefix("Value error, ")
        return f"{path}: {text}" if path else text
    if kind in ("missing", "union_tag_not_found"):
        key = f"{path}.{context['discriminator'].strip(chr(39))}" if "discriminator" in context else path
        return f"{key}: expected a value; found none. It has no default: set it."
    if kind == "union_tag_invalid":
        names = [name.strip(" '") for name in context["expected_tags"].split(",")]
        return unknown(f"{path}.{context['discriminator'].strip(chr(39))}", context["tag"], names)
    if kind == "too_short":
        return f"{path}: expected at least one value; found none. Add one."
    if kind == "tuple_type":
        hint = f" Did you mean [{found}]?" if isinstance(found, str) else ""
        return f"{path}: expected a list; found {found!r}.{hint}"
    return f"{path}: {message.replace('Input should be', 'expected')}; found {found!r}."
