"""A rollout cut into forward passes of rows of like length, and the completion tokens in each.

Rows of a microbatch are laid out run by run, equally many for each run, as the stacked adapters need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.models import LanguageModel
from gradlab.types import Rollout

_SHORTER = 0.8  # a row this much shorter than the microbatch's longest opens the next one
_LEAST_ROWS = 8  # below this many rows a forward pass is all overhead


@dataclass(frozen=True)
class Microbatch:
    """rows (N) indexes the rollout; ids_NT is cut to the longest row; M completion tokens follow.

    predict_NT is True where position t predicts a completion token; row_M, column_M say which one.
    """

    rows: Tensor
    ids_NT: Tensor
    predict_NT: Tensor
    target_M: Tensor
    row_M: Tensor
    column_M: Tensor

    def hidden(self, lm: LanguageModel) -> Tensor:
        """Hidden states (M, H) that predict the completion tokens."""
        return lm.hidden(self.ids_NT)[self.predict_NT]


def plan(rollout: Rollout, runs: int, max_tokens: int) -> list[Microbatch]:
    """Longest rows first; a new microbatch when rows get much shorter or the token limit is met."""
    length_RB = rollout.length_N.view(runs, -1).cpu()
    order_RB = length_RB.argsort(dim=1, descending=True, stable=True)
    longest_B = length_RB.gather(1, order_RB).max(0).values.tolist()
    order_RB = order_RB + torch.arange(runs)[:, None] * length_RB.shape[1]
    batches, start = [], 0
    for end in range(1, len(longest_B) + 1):
        full = end < len(longest_B) and (
            (end + 1 - start) * runs * longest_B[start] > max_tokens
            or ((end - start) * runs >= _LEAST_ROWS and longest_B[end] < _SHORTER * longest_B[start])
        )
        if full or end == len(longest_B):
            batches.append(_microbatch(rollout, order_RB[:, start:end].flatten(), longest_B[start]))
            start = end
    return batches


def _microbatch(rollout: Rollout, rows: Tensor, width: int) -> Microbatch:
    rows = rows.to(rollout.ids_NT.device)
    ids = rollout.ids_NT[rows, :width]
    t = torch.arange(width, device=ids.device)
    first, last = rollout.prompt_len_N[rows, None] - 1, rollout.length_N[rows, None] - 1
    predict = (t >= first) & (t < last)
    local, position = predict.nonzero(as_tuple=True)
    return Microbatch(
        rows=rows,
        ids_NT=ids,
        predict_NT=predict,
        target_M=ids[local, position + 1],
        row_M=rows[local],
        column_M=position - first[local, 0],
    )
