"""Gradients whose cosine is known: what the statistics of gradlab.inference make of them.

`python tests/simulate.py` prints the tables of docs/synergy.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gradlab.inference import Evidence, ProbedStep, estimate, evidence, merge

PROMPTS, GENERATIONS, PARAMETERS = 8, 8, 40
RARE = 0.1  # a value given in fewer repeats is one that chance selected
Array = np.ndarray


def step(
    rng: np.random.Generator,
    signal: tuple[float, float] = (0.0, 0.0),
    cosine: float = 0.0,
    shared: float = 0.0,
    prompts: int = PROMPTS,
    spread: float = 0.0,
    local: float = 0.0,
    centred: bool = True,
) -> ProbedStep:
    """Two rewards r_i = signal_i (score . v_i) + noise_i; the true gradients signal_i v_i have the given cosine.

    shared: correlation of the two noises; spread, local: standard deviation of a prompt's own gradient by
    coordinate, of each objective by itself or of both alike.
    """
    scores_BP = rng.normal(size=(prompts * GENERATIONS, PARAMETERS))
    group_B = np.repeat(np.arange(prompts), GENERATIONS)
    first = np.eye(PARAMETERS)[0]
    direction_KP = np.stack([first, cosine * first + np.sqrt(1 - cosine**2) * np.eye(PARAMETERS)[1]])
    direction_KGP = np.array(signal)[:, None, None] * direction_KP[:, None]
    direction_KGP = direction_KGP + spread * rng.normal(size=(2, prompts, PARAMETERS))
    direction_KGP = direction_KGP + (local * rng.normal(size=(1, prompts, PARAMETERS)) if local else 0.0)
    noise_BK = rng.normal(size=(len(group_B), 2))
    noise_BK[:, 1] = shared * noise_BK[:, 0] + np.sqrt(1 - shared**2) * noise_BK[:, 1]
    rewards_BK = np.einsum("bp,kbp->bk", scores_BP, direction_KGP[:, group_B]) + noise_BK
    if centred:
        rewards_BK -= rewards_BK.reshape(prompts, GENERATIONS, 2).mean(axis=1)[group_B]
    return ProbedStep(scores_BP @ scores_BP.T, rewards_BK, group_B)


def pair(make: Callable[[np.random.Generator], ProbedStep], repeats: int, steps: int, seed: int, resamples: int = 199):
    """columns of the pair's estimates, (repeats,) each: plain, unbiased, low, high, alignment, p."""
    rows = []
    for rng in np.random.default_rng(seed).spawn(repeats):
        found: Evidence = merge([evidence(make(rng), rng, resamples) for _ in range(steps)])
        e = estimate(found, rng)
        matrices = (e.cosine_KK, e.unbiased_KK, e.low_KK, e.high_KK, e.alignment_KK, e.p_KK)
        rows.append([m[0, 1] for m in matrices])
    return dict(zip(("plain", "unbiased", "low", "high", "alignment", "p"), np.array(rows).T, strict=True))


CASES: dict[str, dict] = {
    "independent rewards, no gradient": {},
    "shared noise 0.9, no gradient": {"shared": 0.9},
    "one has a gradient": {"signal": (0.5, 0.0)},
    "both, orthogonal": {"signal": (0.5, 0.5)},
    "both, orthogonal, shared noise 0.9": {"signal": (0.5, 0.5), "shared": 0.9},
    "cosine 0.5": {"signal": (0.5, 0.5), "cosine": 0.5},
    "cosine -0.5, shared noise 0.9": {"signal": (0.5, 0.5), "cosine": -0.5, "shared": 0.9},
    "the same on each prompt, unrelated across": {"local": 0.15},
    "cosine 0.8, weak": {"signal": (0.2, 0.2), "cosine": 0.8},
}


def table(repeats: int = 400) -> str:
    lines = [
        "| rewards | steps | plain cosine | unbiased (defined) | alignment | flagged at 5 % | coverage |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, options in CASES.items():
        for steps in (1, 16):
            found = pair(
                lambda rng, options=options: step(rng, **options), repeats if steps == 1 else repeats // 2, steps, 0
            )
            truth = 1.0 if options.get("local") else options.get("cosine", 0.0)
            defined = ~np.isnan(found["unbiased"])
            interval = ~np.isnan(found["low"])
            held = (found["low"] <= truth) & (truth <= found["high"])
            cover = f"{held[interval].mean():.2f} ({interval.mean():.0%})" if interval.mean() >= RARE else "rare"
            given = defined.mean() >= RARE
            unbiased = f"{found['unbiased'][defined].mean():+.2f} ({defined.mean():.0%})" if given else "rare"
            lines.append(
                f"| {name} | {steps} | {found['plain'].mean():+.2f} | {unbiased} | {found['alignment'].mean():+.2f} "
                f"| {(found['p'] <= 0.05).mean():.3f} | {cover} |"
            )
    return "\n".join(lines)


def mistaken(rng: np.random.Generator) -> dict[str, float]:
    """Cosines of two objectives by estimators that are wrong, beside what the same completions give when done right.

    uncentred        independent 0/1 rewards of mean 0.7, no baseline: both gradients hold 0.7 times the sum of scores
    centred          the same rewards, minus their prompt's mean
    own rollouts     one and the same objective twice, each time on completions of its own
    same rollouts    the same twice on one rollout
    scalar           the batch's mean reward as the one advantage of every row: both gradients are multiples of one
                     vector, and the cosine is the sign of a product
    """
    group_B = np.repeat(np.arange(PROMPTS), GENERATIONS)

    def cosine(first: Array, second: Array) -> float:
        return float(first @ second / np.sqrt((first @ first) * (second @ second)))

    def centred(values_BK: Array) -> Array:
        return values_BK - values_BK.reshape(PROMPTS, GENERATIONS, -1).mean(axis=1)[group_B]

    scores_BP = rng.normal(size=(len(group_B), 10 * PARAMETERS))
    binary_BK = (rng.random((len(group_B), 2)) < 0.7).astype(float)
    uncentred_PK, centred_PK = scores_BP.T @ binary_BK, scores_BP.T @ centred(binary_BK)
    other_BP = rng.normal(size=scores_BP.shape)

    def objective(at_BP: Array) -> Array:
        return at_BP.T @ centred(at_BP[:, :1] * 0.5 + rng.normal(size=(len(at_BP), 1)))[:, 0]

    own_P, again_P = objective(scores_BP), objective(other_BP)
    level_K = rng.normal(size=2)  # mean reward of the batch minus a running baseline
    return {
        "uncentred": cosine(*uncentred_PK.T),
        "centred": cosine(*centred_PK.T),
        "own rollouts": cosine(own_P, again_P),
        "same rollouts": cosine(own_P, own_P),
        "scalar": cosine(*(scores_BP.sum(axis=0)[:, None] * level_K).T),
    }


def mistakes(repeats: int = 200) -> str:
    found = [mistaken(rng) for rng in np.random.default_rng(0).spawn(repeats)]
    lines = ["| estimator | true | mean | mean size |", "|---|---|---|---|"]
    truth = {"uncentred": 0, "centred": 0, "own rollouts": 1, "same rollouts": 1, "scalar": 0}
    for name, true in truth.items():
        values = np.array([row[name] for row in found])
        lines.append(f"| {name} | {true} | {values.mean():+.2f} | {np.abs(values).mean():.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(mistakes(), table(), sep="\n\n")
