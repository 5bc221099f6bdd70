"""Is a gradient cosine real? Estimates, intervals and nulls from saved Grams alone; no second pass.

A probed step gives gram_BB (inner products of per-row scores), advantages_BK and group_B (the prompt of
each row). Rows of different prompts are independent draws; rows of one prompt share a baseline. So:

- the plain cosine adds each row's product with itself: squared noise in the norms, and between two objectives
  the correlation of their rewards on the same text. The **cross-fitted** inner product keeps products of different
  rows only: of different prompts as they are, of one prompt U-centred (Szekely and Rizzo 2014; the unbiased HSIC of
  Song et al. 2012 with linear kernels), since its rows share a baseline. It is unbiased for the gradients expected
  on the step's prompts. A prompt with fewer than ENOUGH_ROWS rows has no such estimate; then the step keeps
  different prompts alone, scaled to all pairs, and speaks of the mean over prompts. Over the cross-fitted norms it
  is the **unbiased** cosine (a ratio of unbiased parts: consistent, not exactly unbiased), given only where both
  squared norms are positive in 97.5 % of the resamples: a norm that happens to come out positive by chance selects
  large cosines. Over the plain norms it is the **alignment**, defined where both objectives have a gradient, of the
  cosine's sign and shrunk towards 0 by noise;
- the **interval** is a bootstrap: of prompts within a step; over ENOUGH_STEPS steps or more, of steps;
- the **permutation null** shuffles advantages among the rows of each prompt, in three ways: either objective
  alone, and both together (which keeps the noise they share). The statistic is the cross-fitted inner product,
  and the largest p-value counts (intersection-union test, Berger 1982): valid when neither objective is related
  to the scores, or one of the two is not and is independent of the other. Two objectives that both have a
  gradient, orthogonal to each other, are outside of it: within one step they are flagged too often. Over
  ENOUGH_STEPS steps a **sign-flip** test of the steps' inner products, which asks only whether they scatter
  around 0, must agree: its p-value enters the maximum;
- steps are added after division by sqrt(sum over prompts of squared norms), so that a step counts once however
  long its gradients are. That length holds no product of different prompts: dividing by it leaves those at mean 0
  where there is no relation, dividing by the plain norm would not;
- q-values control the false discovery rate (Benjamini and Hochberg 1995).

An objective may apply to some prompts only (`applies_BK`): where pairs of prompts are scaled, they are counted by
objective.
float64 numpy, no torch.
"""

from gradlab.inference.estimates import (
    CONFLICT,
    NEITHER,
    SYNERGY,
    ConflictFraction,
    PairEstimate,
    conflict_against_null,
    estimate,
    q_values,
    verdict,
)
from gradlab.inference.steps import Evidence, ProbedStep, evidence, merge

__all__ = [
    "CONFLICT",
    "NEITHER",
    "SYNERGY",
    "ConflictFraction",
    "Evidence",
    "PairEstimate",
    "ProbedStep",
    "conflict_against_null",
    "estimate",
    "evidence",
    "merge",
    "q_values",
    "verdict",
]
