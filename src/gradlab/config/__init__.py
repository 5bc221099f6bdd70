"""The only place where a hyperparameter has a default: frozen pydantic models with unknown keys forbidden.

`docs/CONFIG.md` and `config/schema.json` are generated from them. No torch here: a dry run is fast.
"""

from gradlab.config.algorithm import GRPO, RLOO, Algorithm, AlgorithmBase, Reinforce
from gradlab.config.base import BaseConfig
from gradlab.config.frozen import Frozen
from gradlab.config.run import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PlacementConfig,
    ProbeConfig,
    RolloutConfig,
    RunConfig,
)
from gradlab.config.weighting import (
    CTWA,
    PCD,
    Bounded,
    CAGrad,
    FairGrad,
    Fixed,
    GradVac,
    NashMTL,
    OnGram,
    Schedule,
    Surgery,
    Synergy,
    Weighting,
)

__all__ = [
    "CTWA",
    "GRPO",
    "PCD",
    "RLOO",
    "AdapterConfig",
    "Algorithm",
    "AlgorithmBase",
    "BaseConfig",
    "Bounded",
    "CAGrad",
    "DataConfig",
    "EvaluationConfig",
    "FairGrad",
    "Fixed",
    "Frozen",
    "GradVac",
    "ModelConfig",
    "NashMTL",
    "ObjectiveConfig",
    "OnGram",
    "OptimizerConfig",
    "PlacementConfig",
    "ProbeConfig",
    "Reinforce",
    "RolloutConfig",
    "RunConfig",
    "Schedule",
    "Surgery",
    "Synergy",
    "Weighting",
]
