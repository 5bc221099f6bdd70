"""The gradient of one step equals that of TRL's GRPOTrainer with PEFT LoRA, on the same rollout.

TRL does all it does in training (padding, masks, reference, loss, backward) from the same sampled ids;
only its advantages are replaced by ours, whose epsilon differs (1e-6, TRL 1e-4). That is compared apart.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from gradlab.config import GRPO
from gradlab.credit import CreditState, credit
from gradlab.microbatch import plan
from gradlab.update import Batch, accumulate

pytestmark = [
    # transformers 5 renamed the setting; TRL 1.16 still has the old name, whose default is on.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*rollout_func.*experimental.*:UserWarning"),
]

ROWS, GENERATIONS, NEW_TOKENS, TEMPERATURE, BETA = 8, 4, 12, 0.7, 0.1
REWARDS = np.array([0.0, 1.0, 0.0, 0.25, 3.0, 1.0, 1.0, 2.0])


@pytest.fixture(scope="module")
def ours():
    # Many ids end a row, so that lengths differ.
    adapter = tiny.lora(replace(tiny.lm(), eos_ids=tuple(range(1, 60))))
    rollout = tiny.rollout(adapter, GENERATIONS, NEW_TOKENS, TEMPERATURE)
    assert len(set(rollout.completion_len_N.tolist())) > 2, "rows of different lengths tell the loss types apart"
    return adapter, rollout


def configured(loss_type: str, beta: float):
    algorithm = {"name": "grpo", "loss_type": loss_type, "beta": beta}
    shape = {
        "batch_size": ROWS,
        "num_generations": GENERATIONS,
        "max_new_tokens": NEW_TOKENS,
        "temperature": TEMPERATURE,
    }
    return tiny.config(algorithm=algorithm, rollout=shape)


def advantages() -> np.ndarray:
    group_B = np.repeat([0, 1], GENERATIONS)
    return credit(REWARDS[:, None], group_B, np.ones(1), GRPO(name="grpo"), CreditState())[:, 0]


def gradient(ours, config, old_logp_NC=None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Our gradients by PEFT's parameter names, and the policy's log-probs."""
    adapter, rollout = ours
    for parameter in adapter.named_parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    batch = Batch.of(rollout, plan(rollout, 1, 80), torch.from_numpy(advantages()).float(), [config])
    assert len(batch.microbatches) > 1, "accumulated over several passes"
    accumulate(adapter, batch, first=True, probe=None)
    logp_NC = batch.old_logp_NC.clone()
    if old_logp_NC is not None:
        for parameter in adapter.named_parameters().values():
            parameter.grad.zero_()
        batch.old_logp_NC[:] = old_logp_NC
        accumulate(adapter, batch, first=False, probe=None)
    named = adapter.named_parameters().items()
    return {f"base_model.model.{name}.default.weight": p.grad[0].clone() for name, p in named}, logp_NC


def trl_gradient(ours, config, folder, old_logp_NC=None):
    """TRL's gradients by parameter name, and the advantages it computed itself."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    adapter, rollout = ours
    starts, ends = rollout.prompt_len_N.tolist(), rollout.length_N.tolist()
    rows = [(ids[:a], ids[a:b]) for ids, a, b in zip(rollout.ids_NT.tolist(), starts, ends, strict=True)]

    class Given(GRPOTrainer):
        """Our advantages, and old log-probs when they are given, in TRL's batch."""

        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            self.own_advantages = batch["advantages"].clone()
            batch["advantages"] = torch.from_numpy(advantages()).float()
            if old_logp_NC is not None:
                batch["old_per_token_logps"] = old_logp_NC
            return batch

    arguments = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        num_generations=GENERATIONS,
        max_completion_length=NEW_TOKENS,
        temperature=TEMPERATURE,
        beta=config.algorithm.beta,
        use_bias_correction_kl=False,
        loss_type=config.algorithm.loss_type,
        scale_rewards="group",
        num_iterations=1,
        epsilon=config.algorithm.clip_epsilon,
        mask_truncated_completions=False,
        report_to="none",
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Given(
        model=tiny.model(),
        args=arguments,
        reward_funcs=lambda completions, **_: REWARDS.tolist(),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * ROWS),
        processing_class=tiny.tokenizer(),
        peft_config=lora,
        rollout_func=lambda prompts, _: {
            "prompt_ids": [prompt for prompt, _ in rows],
            "completion_ids": [completion for _, completion in rows],
            "logprobs": None,
        },
    )
    weights = dict(trainer.model.named_parameters())
    for name, parameter in adapter.named_parameters().items():
        weights[f"base_model.model.{name}.default.weight"].data.copy_(parameter.detach()[0])
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(0)
    trainer.training_step(trainer.model, [{"prompt": "a"}] * ROWS, None)
    return {name: p.grad for name, p in weights.items() if p.requires_grad}, trainer.own_advantages


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_gradient_is_trls(ours, loss_type, beta, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    config = configured(loss_type, beta)
    found, _ = gradient(ours, config)
    expected, own_advantages = trl_gradient(ours, config, tmp_path)
    same(found, expected)
    torch.testing.assert_close(own_advantages, torch.from_numpy(advantages()).float(), rtol=1e-3, atol=0)


def test_gradient_is_trls_where_the_ratio_is_clipped(ours, tmp_path, monkeypatch):
    """Old log-probs moved off the policy's by up to 0.4 nats: some tokens are clipped, most are not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    config = configured("grpo", BETA)
    on_policy, logp_NC = gradient(ours, config)
    old_logp_NC = logp_NC + 0.4 * torch.sin(torch.arange(logp_NC.numel()).float()).view(logp_NC.shape)
    found, _ = gradient(ours, config, old_logp_NC)
    expected, _ = trl_gradient(ours, config, tmp_path, old_logp_NC)
    same(found, expected)
    assert distance(found, on_policy) > 0.05


def distance(found, expected) -> float:
    """Norm of the difference over the norm of `expected`, over all parameters together."""
    assert found.keys() == expected.keys()
    gap = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return (gap / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5


def same(found, expected) -> None:
    assert distance(found, expected) < 1e-5
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5 * expected[name].norm().item())
