"""One run, as typed values."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gradlab.config.algorithm import Algorithm
from gradlab.config.frozen import Frozen, nearest_multiple
from gradlab.config.weighting import Fixed, Weighting


class ModelConfig(Frozen):
    id: str
    """`base/<name>` (made here from config/bases/<name>.yaml), a local path (`./`, `../`, `/`), or a hub id."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights. Adapters are always float32; `full` needs float32."""
    quantize: Literal["none", "8bit", "4bit"] = "none"
    """bitsandbytes quantization of the frozen weights (LLM.int8 or NF4)."""
    chat_template: bool = False
    """Wrap each prompt as one user turn of the tokenizer's chat template."""
    revision: str | None = None
    """Hub revision. None: the default branch."""


class AdapterConfig(Frozen):
    kind: Literal["lora", "full"] = "lora"
    """What is trained: low-rank factors beside frozen linears, or every weight."""
    rank: int = Field(8, ge=1)
    """LoRA rank r."""
    alpha: float = Field(16.0, gt=0)
    """LoRA scale: the update is alpha / rank * B A."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Module names that receive LoRA, as in PEFT's target_modules; each must match.
    all-linear: every linear but the LM head."""


class ObjectiveConfig(Frozen):
    kind: str | None = None
    """Registered objective; None: the key itself. Lets one objective appear twice with other parameters."""
    enabled: bool = True
    """A disabled objective is neither scored nor trained."""
    weight: float = 1.0
    """Its weight in the combined reward. 0: measured, not trained."""
    params: dict[str, Any] = {}
    """Parameters of the objective itself; see docs/OBJECTIVES.md."""


class DataConfig(Frozen):
    train: tuple[str, ...] = Field(min_length=1)
    """JSONL files of training prompts; an epoch interleaves them in proportion to their lengths."""
    heldout: tuple[str, ...] = Field(min_length=1)
    """JSONL files of prompts for evaluation. No prompt may appear in `train` too."""


class RolloutConfig(Frozen):
    batch_size: int = Field(32, ge=1)
    """Completions a step, B."""
    num_generations: int = Field(8, ge=1)
    """Completions of one prompt (a group). Must divide batch_size."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest completion."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; the trained log-probs use it too. There is no top-p or top-k: they change the policy."""


class OptimizerConfig(Frozen):
    lr: float = Field(1e-3, ge=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear"] = "constant"
    """After warm-up: constant, or linear, reaching 0 just after the last step."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's moment decays."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip each run's gradient norm. None: never."""


class ProbeConfig(Frozen):
    every: int = Field(5, ge=0)
    """Steps between probes; 0: never."""
    scope: Literal["last_block", "adapter", "per_layer", "per_module"] = "last_block"
    """Parameters probed: those of the last block, all trained ones, or all with one Gram a layer, or one for the
    attention and one for the MLP of each layer."""
    space: Literal["gradient", "update", "preconditioned"] = "gradient"
    """gradient: of the trained parameters themselves (LoRA: the factors); update: the change of the weight B A that a
    LoRA step along that gradient makes; preconditioned: divided by AdamW's sqrt(v) + eps after the step's update."""
    tau: float = Field(0.0, ge=0, lt=1)
    """A pair is in conflict when its cosine is below -tau."""


class EvaluationConfig(Frozen):
    num_prompts: int | None = Field(None, ge=1)
    """Held-out prompts used, the first of each file in turn. None: all."""
    samples_per_prompt: int = Field(4, ge=1)
    """Fresh completions of each prompt."""
    seed: int = Field(1234, ge=0)
    """Seed of the evaluation's sampling and bootstrap; the same for every run."""
    bootstrap: int = Field(1000, ge=100)
    """Bootstrap resamples, by prompt."""


class PlacementConfig(Frozen):
    """Where and how a run executes. Never part of its identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one."""
    threads: int = Field(1, ge=1)
    """CPU threads of a train or evaluation job."""
    gpu_slots: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Slots of the resource `gpu_slots` that a job takes. auto: its estimated GPU memory over that of a slot; 0 without
    a GPU."""
    microbatch_tokens: int = Field(16384, ge=1)
    """Tokens (padding included) in one forward pass; bounds memory, not the batch."""
    checkpoint_every: int = Field(20, ge=1)
    """Steps between checkpoints."""


class RunConfig(Frozen):
    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    algorithm: Algorithm
    objectives: dict[str, ObjectiveConfig]
    """The objective axis K: one entry an objective. Order does not matter; K is sorted by name."""
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    weighting: Weighting = Fixed(name="fixed")
    """How the objectives' weights move while training. Those that read a Gram read that of `probe.scope` and
    `probe.space`."""
    probe: ProbeConfig = ProbeConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    placement: PlacementConfig = PlacementConfig()
    steps: int = Field(100, ge=1)
    """Rollouts, each followed by `inner_epochs` optimizer steps."""
    seed: int = Field(0, ge=0)
    """Data order is a function of (seed, epoch), sampling noise of (seed, step, row)."""
    logging_steps: int = Field(10, ge=1)
    """Steps between sample lines in train.log and rows in samples.jsonl."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        rollout, algorithm = self.rollout, self.algorithm
        if rollout.batch_size % rollout.num_generations:
            raise ValueError(
                f"rollout.batch_size: expected a multiple of rollout.num_generations={rollout.num_generations}; "
                f"found {rollout.batch_size}. Try {nearest_multiple(rollout.batch_size, rollout.num_generations)}."
            )
        if algorithm.name in ("grpo", "rloo") and rollout.num_generations < 2:
            raise ValueError(
                f"rollout.num_generations: expected at least 2 for {algorithm.name}, which compares completions "
                f"of one prompt; found {rollout.num_generations}."
            )
        if algorithm.name == "reinforce" and algorithm.baseline == "zscore" and rollout.batch_size < 2:
            raise ValueError(
                "rollout.batch_size: expected at least 2 for algorithm.baseline zscore, which scales by the batch's "
                f"standard deviation; found {rollout.batch_size}."
            )
        if not self.enabled_objectives:
            raise ValueError("objectives: expected at least one enabled objective; found none. Set `enabled: true`.")
        if not any(o.weight for o in self.enabled_objectives.values()):
            raise ValueError("objectives: expected a non-zero weight; found 0 for all. Nothing would be trained.")
        self._check_weighting()
        if algorithm.name == "grpo" and algorithm.normalize == "objective" and algorithm.scale_rewards == "none":
            raise ValueError(
                "algorithm.scale_rewards: expected group with algorithm.normalize objective, which divides by each "
                "objective's deviation; found none. Set algorithm.normalize: sum for centring only."
            )
        if self.adapter.kind == "full" and (self.model.dtype != "float32" or self.model.quantize != "none"):
            raise ValueError(
                "adapter.kind: expected `lora` for a model that is not float32 (AdamW underflows in half precision); "
                "found `full`. Set model.dtype: float32 and model.quantize: none, or adapter.kind: lora."
            )
        return self

    def _check_weighting(self) -> None:
        weighting, labels = self.weighting, list(self.enabled_objectives)
        name = weighting.name
        for key in ("end", "reached", "primary"):
            value = getattr(weighting, key, {})
            for label in [value] if isinstance(value, str) else value:
                if label not in labels:
                    raise ValueError(
                        f"weighting.{key}: expected an enabled objective, one of {', '.join(labels)}; found {label!r}."
                    )
        if name == "krum" and len(labels) < 3:
            raise ValueError(
                f"weighting.name: expected at least 3 objectives for krum, which compares neighbours; found "
                f"{len(labels)}. Choose another or add objectives."
            )
        if not self.probe.every and (name == "synergy" or getattr(weighting, "gram", "") == "ema"):
            raise ValueError(
                f"probe.every: expected at least 1 for weighting.name {name}, which reads the probe; found 0. "
                "Set probe.every or another weighting."
            )
        if self.probe.space == "preconditioned" and getattr(weighting, "gram", "") == "batch":
            raise ValueError(
                "weighting.gram: expected ema with probe.space preconditioned, which is measured after the optimizer's "
                "step; found batch. Set weighting.gram: ema or probe.space: update."
            )

    @property
    def enabled_objectives(self) -> dict[str, ObjectiveConfig]:
        """Label to configuration in the order of axis K (sorted by label)."""
        return {k: self.objectives[k] for k in sorted(self.objectives) if self.objectives[k].enabled}
