"""One run, as typed values: the only place where a hyperparameter has a default.

Frozen pydantic models with unknown keys forbidden. `docs/CONFIG.md` and
`config/schema.json` are generated from them. No torch here: a dry run is fast.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


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


class AlgorithmBase(Frozen):
    beta: float = Field(0.0, ge=0)
    """Weight of KL(policy || reference), per-token k3 estimator; 0 needs no reference model."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """The ratio's clip range is [1 - clip_epsilon, 1 + clip_epsilon]; it acts from the second inner epoch on."""
    inner_epochs: int = Field(1, ge=1)
    """Optimizer steps on each rollout."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "sequence"] = "grpo"
    """Token weights. grpo: mean over tokens, then rows; dapo: over all tokens of the batch;
    dr_grpo: over rows * max_new_tokens; sequence: sum over tokens, mean over rows."""


class GRPO(AlgorithmBase):
    """Group-relative policy optimization (Shao et al. 2024, arXiv 2402.03300)."""

    name: Literal["grpo"]
    scale_rewards: Literal["group", "none"] = "group"
    """group: divide by the group's standard deviation (ddof 1, eps 1e-6); none: centre only (Dr. GRPO)."""
    normalize: Literal["sum", "objective"] = "sum"
    """sum: one scale, that of the weighted reward's sum; objective: each objective by its own deviation in the group,
    then the weighted sum by its deviation over the batch (GDPO, arXiv 2601.05242)."""


class RLOO(AlgorithmBase):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740)."""

    name: Literal["rloo"]


class Reinforce(AlgorithmBase):
    """REINFORCE (Williams 1992) with a baseline."""

    name: Literal["reinforce"]
    baseline: Literal["ema", "zscore"] = "ema"
    """ema: running mean of earlier steps, one per objective; zscore: centre and scale over the batch."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Weight of the past in the running mean."""


Algorithm = Annotated[GRPO | RLOO | Reinforce, Field(discriminator="name")]


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
    train: tuple[str, ...]
    """JSONL files of training prompts; an epoch interleaves them in proportion to their lengths."""
    heldout: tuple[str, ...]
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
    gpu_slots: int = Field(1, ge=0)
    """Slots of the `gpu_slots` resource that a train job takes."""
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
                f"found {rollout.batch_size}. Try {_nearest_multiple(rollout.batch_size, rollout.num_generations)}."
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


def _nearest_multiple(value: int, divisor: int) -> int:
    return max(divisor, round(value / divisor) * divisor)


class BaseConfig(Frozen):
    """A model made here from scratch: config/bases/<name>.yaml."""

    family: Literal["llama", "mistral", "qwen2", "qwen3", "gemma3"] = "llama"
    """Architecture."""
    vocab_size: int = Field(1024, ge=64)
    """Most entries of the tokenizer that is trained on the corpus."""
    hidden_size: int = Field(128, ge=8)
    """Width."""
    intermediate_size: int = Field(384, ge=8)
    """Width of the gated MLP."""
    num_layers: int = Field(4, ge=1)
    """Blocks."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    num_kv_heads: int = Field(2, ge=1)
    """Key-value heads."""
    context: int = Field(512, ge=32)
    """Longest sequence, prompt and completion."""
    corpus: tuple[str, ...]
    """JSONL files of documents to train on: `prompt` followed by `completion`, or by `chosen` and by `rejected`."""
    heldout: tuple[str, ...] = ()
    """JSONL files of prompts on which the base rates are measured."""
    steps: int = Field(1500, ge=0)
    """Optimizer steps; 0: random weights."""
    batch_tokens: int = Field(1024, ge=1)
    """Tokens a step, padding included. Must be a multiple of row_tokens."""
    row_tokens: int = Field(128, ge=2)
    """Length of a row, into which several whole documents are packed; none may be longer."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate (AdamW, cosine to a tenth)."""
    seed: int = Field(0, ge=0)
    """Seed of weights, data order and of the sampling that measures the base rates."""
    bands: dict[str, tuple[float, float]] = {}
    """Base rates that the model must meet on held-out prompts, as name: [low, high]; outside: error."""

    @model_validator(mode="after")
    def _consistent(self) -> BaseConfig:
        for name, value, divisor_name, divisor in (
            ("hidden_size", self.hidden_size, "2 * num_heads", 2 * self.num_heads),
            ("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads),
            ("batch_tokens", self.batch_tokens, "row_tokens", self.row_tokens),
        ):
            if value % divisor:
                raise ValueError(
                    f"{name}: expected a multiple of {divisor_name}={divisor}; found {value}. "
                    f"Try {_nearest_multiple(value, divisor)}."
                )
        if self.row_tokens > self.context:
            raise ValueError(f"row_tokens: expected at most context={self.context}; found {self.row_tokens}.")
        for name, (low, high) in self.bands.items():
            if low > high:
                raise ValueError(f"bands.{name}: expected [low, high] with low <= high; found [{low}, {high}].")
        return self
