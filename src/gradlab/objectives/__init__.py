"""Objectives: text and example in, a finite number out. Importing this package registers them all."""

from gradlab.objectives import answer_format, brevity, exactness, happy, refusal, sentence_length
from gradlab.objectives.base import OBJECTIVES, Objective, build
from gradlab.objectives.catalogue import document

__all__ = [
    "OBJECTIVES",
    "Objective",
    "answer_format",
    "brevity",
    "build",
    "document",
    "exactness",
    "happy",
    "refusal",
    "sentence_length",
]
