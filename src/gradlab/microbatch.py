"""A rollout cut into forward passes of rows of like length, and the completion tokens in each.

Rows of a microbatch are laid out run by run, equally many for each run, as the stacked adapters need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradlab.models import LanguageModel
from gradlab.types import Rollout

# What one more forward and backward pass costs besides its tokens, in tokens: a GPU waits for kernel launches.
_PASS_TOKENS = {"cpu": 128, "cuda": 4096}


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
    """Longest rows first, cut where padding and passes together cost least, at most `max_tokens` a pass.

    A microbatch has at least one row of each run, whatever its length.
    """
    length_RB = rollout.length_N.view(runs, -1).cpu()
    order_RB = length_RB.argsort(dim=1, descending=True, stable=True)
    longest_B = length_RB.gather(1, order_RB).max(0).values.numpy()
    order_RB = order_RB + torch.arange(runs)[:, None] * length_RB.shape[1]
    return [
        _microbatch(rollout, order_RB[:, start:end].flatten(), int(longest_B[start]))
        for start, end in _cuts(longest_B * runs, max_tokens, _PASS_TOKENS[rollout.ids_NT.device.type])
    ]


def _cuts(width_B: NDArray[np.int64], max_tokens: int, pass_tokens: int) -> list[tuple[int, int]]:
    """Cheapest partition of rows sorted by falling width into (start, end), by dynamic programming.

    A part costs `pass_tokens` plus its rows times the width of its first.
    """
    rows = len(width_B)
    cost, start_of = np.zeros(rows + 1), np.zeros(rows + 1, dtype=np.int64)
    for end in range(1, rows + 1):
        tokens = np.arange(end, 0, -1) * width_B[:end]
        tokens = np.where((tokens <= max_tokens) | (np.arange(end) == end - 1), tokens, np.inf)
        total = cost[:end] + pass_tokens + tokens
        start_of[end] = total.argmin()
        cost[end] = total[start_of[end]]
    cuts, end = [], rows
    while end:
        cuts.append((int(start_of[end]), end))
        end = int(start_of[end])
    return cuts[::-1]


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
