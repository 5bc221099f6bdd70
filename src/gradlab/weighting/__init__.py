"""How K objectives become one: importing this package registers the weightings."""

from gradlab.weighting import ctwa, methods, schedule, synergy
from gradlab.weighting.base import WEIGHTINGS, Weighting
from gradlab.weighting.mixing import Mixing, build

__all__ = ["WEIGHTINGS", "Mixing", "Weighting", "build", "ctwa", "methods", "schedule", "synergy"]
