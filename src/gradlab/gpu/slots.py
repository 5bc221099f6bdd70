"""The GPU slots a job takes: its peak memory, estimated from the configuration, over the size of a slot. No torch.

Counted: the frozen weights once; for each run of a pack the adapter with gradient and AdamW's two moments, and the
weights that sampling merges; then the larger of sampling (key-value cache, logits) and training (activations of one
microbatch, a chunk of the LM head, the probe's scores). Left out: what other programs hold on the same GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradlab.config import BaseConfig, RunConfig
from gradlab.gpu.devices import Gpu, per_gpu
from gradlab.gpu.shapes import Shape, shape_of

SLOT_GIB = 4.0
"""Size of a slot where the GPUs are not known: on a cluster, or for a plan made elsewhere."""
CONTEXT_GIB = 0.5  # a CUDA context with torch's kernels
PROMPT_TOKENS = 256  # of the longest prompt, which is not known before the tokenizer is
EVALUATION_ROWS = 128  # completions that evaluation samples at once
HEAD_ELEMENTS = 1 << 27  # logits in flight on a GPU; `logprob` cuts its chunks by this
USABLE = 0.95  # of a GPU's memory; the driver keeps some
SLACK = 1.15  # the allocator's fragments, and what a backward pass holds besides saved activations
# Bytes that autograd keeps of a token in a block, (times width, times MLP width), the most of any family. Measured
# with saved-tensor hooks; half precision also keeps a float32 copy of what enters each LoRA.
_SAVED = {("lora", False): (50, 16), ("lora", True): (56, 10), ("full", False): (72, 16)}


def slots(configs: Sequence[RunConfig], base: BaseConfig | None = None, slot_gib: float = SLOT_GIB) -> int:
    """Slots of `slot_gib` GiB of a job that trains or evaluates these runs in one process.

    `base` is the model made here, if `model.id` names one. A number in `placement.gpu_slots` stands; a pack takes its
    largest. 0: the job runs on the CPU. Raises ValueError when the size of the model cannot be told.
    """
    if configs[0].placement.device == "cpu":
        return 0
    given = [c.placement.gpu_slots for c in configs if c.placement.gpu_slots != "auto"]
    return max(given) if given else math.ceil(peak_gib(configs, base) / slot_gib)


def peak_gib(configs: Sequence[RunConfig], base: BaseConfig | None = None) -> float:
    """Estimated peak GPU memory of one process that trains these runs, which share model and batch shape."""
    first, runs = configs[0], len(configs)
    shape, half, full = shape_of(first.model, base), first.model.dtype != "float32", first.adapter.kind == "full"
    item = 2 if half else 4
    rows = sum(c.rollout.batch_size for c in configs)
    length = min(shape.context, PROMPT_TOKENS + first.rollout.max_new_tokens)

    weights = {"none": float(item), "8bit": 1.0, "4bit": 0.53}[first.model.quantize] * shape.block_weights
    weights += item * (shape.parameters - shape.block_weights)
    trained = max(_trained(c, shape) for c in configs)  # ranks are padded to the largest
    state = 16 * runs * trained
    if full:
        weights = 4 * shape.parameters if first.algorithm.beta else 0  # the reference; the model itself is `state`

    fast = not half and first.model.quantize == "none"
    sampled = max(rows, EVALUATION_ROWS)
    merged = 4 * runs * shape.block_weights if fast else 0
    cache = 2 * item * sampled * length * shape.layers * shape.kv_width
    sampling = merged + cache + 4 * 4 * sampled * shape.vocabulary  # logits, tempered, probabilities, their sums

    tokens = rows * length
    at_once = min(tokens, max(first.placement.microbatch_tokens, runs * length))
    needs_gram = getattr(first.weighting, "gram", "") == "batch"
    kept = tokens if needs_gram else at_once
    by_width, by_mlp = _SAVED[first.adapter.kind, half]
    training = kept * shape.layers * (by_width * shape.width + by_mlp * shape.mlp)
    training += 3 * 4 * min(at_once * shape.vocabulary, HEAD_ELEMENTS)
    if first.probe.every or needs_gram:
        held = at_once < tokens or first.probe.space == "preconditioned"
        training += 4 * rows * trained // (1 if held and first.probe.scope != "last_block" else shape.layers)
    return CONTEXT_GIB + SLACK * (weights + state + max(sampling, training)) / 2**30


def _trained(config: RunConfig, shape: Shape) -> int:
    """Trained parameters of one run."""
    if config.adapter.kind == "full":
        return shape.parameters
    targets = config.adapter.targets
    names = shape.linears.keys() if targets == "all-linear" else {t.rsplit(".", 1)[-1] for t in targets}
    chosen = [sizes for name, sizes in shape.linears.items() if name in names] or shape.linears.values()
    return shape.layers * config.adapter.rank * sum(i + o for i, o in chosen)


@dataclass(frozen=True)
class Capacity:
    """What one call offers its jobs.

    total      limit of the resource `gpu_slots`; None: not limited
    gpus       the GPUs that this machine shows the call
    cluster    jobs run elsewhere, on GPUs that the cluster binds
    slot_gib   size of a slot as configured; None: a GPU's memory over the slots it offers
    """

    total: int | None
    gpus: Sequence[Gpu] = ()
    cluster: bool = False
    slot_gib: float | None = None

    @property
    def size_gib(self) -> float:
        """Size of a slot: with it, slots that are all taken are memory that is all used."""
        smallest = self._smallest_gib()
        if self.slot_gib is not None or smallest is None or not self.total:
            return self.slot_gib or SLOT_GIB
        return smallest / per_gpu(self.total, len(self.gpus))

    @property
    def on_gpus(self) -> int | None:
        """Slots to share out among the GPUs here: the limit, or what their memory holds. None: nothing to share."""
        if self.cluster or not self.gpus:
            return None
        if self.total is not None:
            return self.total
        return len(self.gpus) * max(1, int((self._smallest_gib() or SLOT_GIB) // self.size_gib))

    def demand(self, configs: Sequence[RunConfig], base: BaseConfig | None) -> int:
        """Slots of a job. Without a GPU the slots are inert: `threads` alone bounds the jobs."""
        if not self.cluster and not self.gpus and configs[0].placement.device == "auto":
            return 0
        return slots(configs, base, self.size_gib)

    def fits(self, configs: Sequence[RunConfig], base: BaseConfig | None) -> bool:
        """Whether one GPU here offers what these runs take in one process; always, where none is shared out."""
        return self.on_gpus is None or self.demand(configs, base) <= per_gpu(self.on_gpus, len(self.gpus))

    def ask(self, what: str, configs: Sequence[RunConfig], base: BaseConfig | None) -> int:
        """The demand of the job `what`.

        Raises ValueError when it is more than the call, or one GPU, offers: Snakemake would clip it and start the job.
        """
        asked = self.demand(configs, base)
        if self.total is not None and asked > self.total:
            raise ValueError(
                f"placement.gpu_slots: expected at most {self.total}, the limit of this call; found {asked} for "
                f"{what}{self._why(configs, base)}. {self._mend(configs)}"
            )
        if self.on_gpus is None:
            return asked
        most, count = per_gpu(self.on_gpus, len(self.gpus)), len(self.gpus)
        smallest = self._smallest_gib()
        if self.slot_gib is not None and smallest is not None and most * self.slot_gib > smallest:
            raise ValueError(
                f"gpu_slots: expected at most {count * int(smallest // self.slot_gib)} slots of gpu_slot_gib="
                f"{self.slot_gib:g} on {count} GPU(s) with {smallest:.1f} GiB each; found {self.on_gpus}. Lower one: "
                "--resources gpu_slots=N"
            )
        if asked > most:
            raise ValueError(
                f"placement.gpu_slots: expected at most {most}, what one of {count} GPU(s) offers of {self.on_gpus} "
                f"slots; found {asked} for {what}{self._why(configs, base)}. {self._mend(configs)}"
            )
        return asked

    def _why(self, configs: Sequence[RunConfig], base: BaseConfig | None) -> str:
        if any(c.placement.gpu_slots != "auto" for c in configs):
            return ""
        return f" (about {peak_gib(configs, base):.1f} GiB in slots of {self.size_gib:.1f})"

    def _mend(self, configs: Sequence[RunConfig]) -> str:
        """More slots help a number; an estimate grows with them, since they divide the same memory."""
        if len(configs) > 1:
            return "Lower pack (--config pack=N) or placement.microbatch_tokens."
        if self.on_gpus and all(c.placement.gpu_slots == "auto" for c in configs):
            return (
                "Lower placement.microbatch_tokens or the batch, choose model.dtype: bfloat16 or model.quantize, or "
                "give placement.gpu_slots a number."
            )
        return "Raise the limit (--resources gpu_slots=N) or lower placement.gpu_slots."

    def _smallest_gib(self) -> float | None:
        known = [gpu.memory_mib for gpu in self.gpus if gpu.memory_mib is not None]
        return USABLE * min(known) / 1024 if known and not self.cluster else None
