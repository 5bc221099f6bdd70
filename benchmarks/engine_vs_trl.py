"""A training step against TRL's GRPOTrainer with PEFT LoRA: same weights, prompts, reward, threads, allocator.

    python benchmarks/engine_vs_trl.py [--steps 12] [--plain-allocator]

Each step of TRL is followed by one of ours in the same process. Seconds are medians; the ratio is the
median over neighbouring steps with the range of the middle half. One thread, and seconds are CPU time:
what the wall clock shows on an idle machine, whatever else this one is doing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

import common
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from gradlab import data
from gradlab.config import RunConfig
from gradlab.objectives.base import build


def grpo_config(config: RunConfig, folder: Path, steps: int) -> GRPOConfig:
    """TRL's settings for the same experiment; every default that would change it is written out."""
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=config.rollout.batch_size,
        gradient_accumulation_steps=1,
        num_generations=config.rollout.num_generations,
        max_completion_length=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        beta=config.algorithm.beta,
        epsilon=config.algorithm.clip_epsilon,
        num_iterations=config.algorithm.inner_epochs,
        loss_type=config.algorithm.loss_type,
        scale_rewards="group",
        use_bias_correction_kl=False,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        learning_rate=config.optimizer.lr,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=config.optimizer.weight_decay,
        adam_beta1=config.optimizer.betas[0],
        adam_beta2=config.optimizer.betas[1],
        adam_epsilon=config.optimizer.eps,
        max_grad_norm=config.optimizer.max_grad_norm,
        shuffle_dataset=True,
        max_steps=steps,
        seed=config.seed,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def lora_config(config: RunConfig) -> LoraConfig:
    return LoraConfig(
        r=config.adapter.rank,
        lora_alpha=config.adapter.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


class TimedTRL(GRPOTrainer):
    """GRPOTrainer that notes the seconds of sampling and of scoring."""

    phases: dict[str, float]

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        start = common.clock()
        result = super()._generate(*args, **kwargs)
        self.phases["sample"] = common.clock() - start
        self.tokens = mean(len(ids) for ids in result[1])
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        start = common.clock()
        result = super()._calculate_rewards(*args, **kwargs)
        self.phases["score"] = common.clock() - start
        return result


class Alternate(TrainerCallback):
    """After each step of TRL, one of ours."""

    def __init__(self, ours: Any, warmup: int) -> None:
        self.ours, self.warmup, self.rows = ours, warmup, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.trl.phases = common.clock(), {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trl = {**self.trl.phases, "step": common.clock() - self.start, "tokens": self.trl.tokens}
        trl["forward_backward"] = trl["step"] - trl["sample"] - trl["score"]
        start = common.clock()
        self.ours.step(state.global_step - 1)
        seconds = common.clock() - start
        row = common.last_metrics(self.ours)
        ours = {phase: row[f"seconds/{phase}"] for phase in ("sample", "score", "forward_backward")}
        ours |= {"step": seconds, "tokens": row["completion_tokens_mean"]}
        if state.global_step > self.warmup:
            self.rows.append({"TRL": trl, "gradlab": ours})


def compare(name: str, eos_probability: float, steps: int) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = common.write_prompts(folder)
        config = common.run_config(files)
        model = common.policy(eos_probability)
        ours = common.trainer([config], folder, common.policy(eos_probability))
        examples = data.load_examples(files["train"])
        objective = build("letter_a", config.objectives["letter_a"])

        def reward(prompts: list[str], completions: list[str], index: list[int], **_: Any) -> list[float]:
            return [objective(c, examples[i]).value for c, i in zip(completions, index, strict=True)]

        alternate = Alternate(ours, warmup=2)
        trl = TimedTRL(
            model=model,
            args=grpo_config(config, folder / "trl", steps + 2),
            reward_funcs=reward,
            train_dataset=Dataset.from_list([{"prompt": e.prompt, "index": i} for i, e in enumerate(examples)]),
            processing_class=common.tokenizer(),
            peft_config=lora_config(config),
            callbacks=[alternate],
        )
        alternate.trl = trl
        trl.train()
        rows = []
        for phase in ("step", "sample", "score", "forward_backward"):
            a, b = ([row[side][phase] for row in alternate.rows] for side in ("TRL", "gradlab"))
            rows.append([name, phase, f"{median(a):.3f}", f"{median(b):.3f}", common.spread(common.ratios(a, b))])
        tokens = [mean(row[side]["tokens"] for row in alternate.rows) for side in ("TRL", "gradlab")]
        rows.append([name, "tokens a completion", f"{tokens[0]:.1f}", f"{tokens[1]:.1f}", ""])
        return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps timed on each side, after two of warm-up")
    parser.add_argument("--only", choices=("full", "natural"), help="one regime")
    parser.add_argument("--plain-allocator", action="store_true", help="glibc's defaults on both sides")
    arguments = parser.parse_args()
    regimes = {"full": ("no row ends early", 0.0), "natural": ("natural stopping", 1 / 30)}
    chosen = [regimes[arguments.only]] if arguments.only else list(regimes.values())
    rows = [row for name, p in chosen for row in compare(name, p, arguments.steps)]
    print(common.table(["regime", "phase", "TRL s", "gradlab s", "TRL / gradlab"], rows))
