"""What every configuration model is: frozen, unknown keys forbidden, docstrings of keys kept. No torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def nearest_multiple(value: int, divisor: int) -> int:
    """What to try instead of `value`."""
    return max(divisor, round(value / divisor) * divisor)
