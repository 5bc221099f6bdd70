"""`weighting` of a run: how K objectives become one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gradlab.config.frozen import Frozen


class Fixed(Frozen):
    """The configured weights, all the time."""

    name: Literal["fixed"]


class Schedule(Frozen):
    """From each objective's configured weight at the first step to its weight at the last: linear, or half a cosine."""

    name: Literal["linear", "cosine"]
    end: dict[str, float]
    """Weight at the last step, by objective; one that is not named keeps its weight."""


class Bounded(Frozen):
    low: float = Field(0.2, gt=0, le=1)
    """Least multiple of its configured weight that an objective can have."""
    high: float = Field(5.0, ge=1)
    """Greatest multiple."""


class Synergy(Bounded):
    """Exponentiated gradient: an objective that helps the others gains weight; their mean stays."""

    name: Literal["synergy"]
    eta: float = Field(0.1, ge=0)
    """A probe multiplies a weight by exp(eta * net synergy), the mean of its objective's cosines to the others."""


class CTWA(Bounded):
    """Covariance-targeted weights (arXiv 2602.06869): an objective whose reward the training signal neglects gains."""

    name: Literal["ctwa"]
    target: float = Field(0.2, ge=-1, le=1)
    """Wanted correlation of each objective's reward with the advantage that trains."""
    ema: float = Field(0.1, gt=0, le=1)
    """Weight of this step's correlation in its running mean."""
    lr: float = Field(0.1, ge=0)
    """A step adds lr * max(0, target - correlation) to a log-weight."""
    reached: dict[str, float] = {}
    """Mean reward, by objective, from which on its weight rises no more."""


class OnGram(Frozen):
    gram: Literal["batch", "ema"] = "batch"
    """batch: weights from this step's Gram, measured before the backward pass, which keeps the graphs of all
    microbatches alive; ema: from a running mean of the probed steps before, which costs nothing."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Weight of the past in the running mean."""
    rescale: Literal["none", "mean"] = "none"
    """none: the weights as the method gives them; mean: scaled to mean 1, so that the method says only how much each
    objective counts and the KL penalty keeps its share. A method may return 1/K each where there is no conflict."""


class Surgery(OnGram):
    """Weights from the Gram of the objectives' gradients, by TorchJD's method of that name."""

    name: Literal["aligned_mtl", "dualproj", "imtl_g", "krum", "mgda", "pcgrad", "random", "upgrad"]


class CAGrad(OnGram):
    """Conflict-averse gradient descent (arXiv 2110.14048)."""

    name: Literal["cagrad"]
    c: float = Field(0.5, ge=0)
    """Radius of the ball around the mean gradient, in its norms."""


class FairGrad(OnGram):
    """Fair resource allocation (arXiv 2402.15638)."""

    name: Literal["fairgrad"]
    alpha: float = Field(1.0, ge=0)
    """Kind of fairness. 0: the mean; 1: proportional; large: max-min."""


class GradVac(OnGram):
    """Gradient vaccine (arXiv 2010.05874)."""

    name: Literal["gradvac"]
    beta: float = Field(0.5, ge=0, le=1)
    """Weight of this step's cosine in the running target."""


class NashMTL(OnGram):
    """Nash bargaining (arXiv 2202.01017)."""

    name: Literal["nash_mtl"]
    max_norm: float = Field(1.0, ge=0)
    """Greatest norm of the combined gradient; 0: no limit."""


class PCD(OnGram):
    """Priority-constrained descent (arXiv 2606.29521)."""

    name: Literal["pcd"]
    primary: str
    """The objective that is followed; the others only keep their progress."""
    tau: float = Field(0.02, ge=0, le=1)
    """Share of normalized first-order progress guaranteed to each other objective."""


Weighting = Annotated[
    Fixed | Schedule | Synergy | CTWA | Surgery | CAGrad | FairGrad | GradVac | NashMTL | PCD,
    Field(discriminator="name"),
]
