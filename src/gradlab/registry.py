"""Names to components. A component carries the version of its *meaning*.

The version is bumped by hand when the component's results change; it enters the identity of every
run that uses it, so a refactor retrains nothing and a change of meaning never mixes with old runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """A table of one kind of component, e.g. `Registry("objective")`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._versions: dict[str, int] = {}

    def register(self, name: str, version: int = 1) -> Callable[[T], T]:
        def add(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name], self._versions[name] = entry, version
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ValueError(unknown(self.kind, name, self.names()))
        return self._entries[name]

    def version(self, name: str) -> int:
        self[name]
        return self._versions[name]

    def names(self) -> list[str]:
        return sorted(self._entries)


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The message for a name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{kind}: expected one of {', '.join(known)}; found {name!r}.{hint}"
