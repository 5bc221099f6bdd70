"""The loop: packs, resume, the gate, divergence, inner epochs, KL, and the direction of a step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from gradlab import engine
from gradlab.adapters import Adapter
from gradlab.engine import Trainer, TrainingDiverged
from gradlab.store import read_json, read_jsonl
from gradlab.update import Batch, accumulate


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two tasks, so that objectives apply to some rows only; two runs' files share ids, not prompts."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, first: int, count: int) -> None:
        rows = []
        for i in range(count):
            n = first + i
            rows.append({"id": f"a{i}", "task": "arithmetic", "prompt": f"what is {n} plus 2?", "answer": n + 2})
            rows.append({"id": f"s{i}", "task": "story", "prompt": "the dog " + "saw " * (n % 5) + f"{n} cats."})
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("train.jsonl", 0, 6)
    write("other.jsonl", 50, 6)
    write("heldout.jsonl", 90, 2)
    return tmp_path


# A random model answers nothing right: exactness is 0 where it applies, and its advantages are exactly 0.
OBJECTIVES = {
    "brevity": {"params": {"target_words": 1, "max_words": 8}},
    "exactness": {},
    "terse": {"kind": "brevity", "params": {"target_words": 1, "max_words": 3}, "weight": -0.5},
}


def config(**changes):
    base = {"objectives": OBJECTIVES, "probe": {"every": 2}, "placement": {"checkpoint_every": 3}, "logging_steps": 2}
    return tiny.config(**{**base, **changes})


def trainer(configs, name: str = "work", family: str = "llama", std: float = 0.2) -> Trainer:
    work = [Path(f"{name}{r}") for r in range(len(configs))]
    return Trainer(configs, [c.model_dump_json() for c in configs], work, tiny.lm(family, std=std))


def train(configs, name: str = "work", family: str = "llama", std: float = 0.2) -> Trainer:
    made = trainer(configs, name, family, std)
    made.train()
    return made


def metrics(run: Trainer, r: int = 0, file: str = "metrics.jsonl") -> list[dict]:
    rows = read_jsonl(run.logs[r].folder / file)
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]


def factors(run: Trainer, r: int = 0) -> dict[str, torch.Tensor]:
    rank = run.configs[r].adapter.rank
    return {
        f"{name}.{x}": (m.A_RrI[r, :rank] if x == "A" else m.B_ROr[r, :, :rank]).detach()
        for name, m in run.adapter.modules.items()
        for x in "AB"
    }


PACK = [
    config(algorithm={"name": "grpo", "beta": 0.1, "inner_epochs": 2}, seed=1),
    config(
        algorithm={"name": "reinforce", "inner_epochs": 2, "loss_type": "dapo"},
        adapter={"rank": 2, "alpha": 4},
        optimizer={"lr": 3e-3, "betas": (0.8, 0.99), "weight_decay": 0.1, "max_grad_norm": 0.1},
        rollout={"batch_size": 8, "num_generations": 4, "max_new_tokens": 12, "temperature": 0.8},
        data={"train": ["other.jsonl"], "heldout": ["heldout.jsonl"]},
        objectives={**OBJECTIVES, "brevity": {"params": {"target_words": 1, "max_words": 6}, "weight": 2.0}},
        seed=2,
    ),
    config(algorithm={"name": "rloo", "inner_epochs": 2, "clip_epsilon": 0.1}, adapter={"rank": 5}, seed=3),
]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_run_in_a_pack_is_the_run_alone(world, family):
    """Metrics of every step, samples, cosines and factors, with all that runs may differ in.

    Equal up to float32 rounding: other rows in a batch change the order of sums, not what is summed.
    """
    together = train(PACK, "pack", family)
    for r, own in enumerate(PACK):
        alone = train([own], f"alone{r}-", family)
        for file in ("metrics.jsonl", "samples.jsonl", "probe/probe.jsonl"):
            expected, found = metrics(alone, 0, file), metrics(together, r, file)
            assert len(expected) == len(found)
            for a, b in zip(expected, found, strict=True):
                a.pop("sampler_logp_gap_max_nats", 0), b.pop("sampler_logp_gap_max_nats", 0)
                assert_close(a, b)
        for name, value in factors(alone).items():
            torch.testing.assert_close(factors(together, r)[name], value, atol=2e-5, rtol=1e-3)


def assert_close(a, b) -> None:
    """Nested JSON, numbers equal to 1e-3 relative (loss and cosines may be small differences: 1e-4 absolute)."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    elif isinstance(a, float):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    else:
        assert a == b


def stop_before(run: Trainer, stop: int) -> None:
    """Train until step `stop` begins, and no further; the state since the last checkpoint is lost."""
    plain = run.step

    def step(number: int) -> None:
        if number == stop:
            raise KeyboardInterrupt
        plain(number)

    run.step = step
    with pytest.raises(KeyboardInterrupt):
        run.train()


@pytest.mark.parametrize("stop", [3, 5])
def test_stopped_and_resumed_is_never_stopped(world, stop):
    """Stopped right at a checkpoint (3) or two steps after it, bit for bit: parameters, moments, baselines, logs."""
    configs = [c.model_copy(update={"steps": 7}) for c in PACK]
    whole = train(configs, "whole")
    stop_before(trainer(configs, "cut"), stop)
    second = trainer(configs, "cut")
    assert second.next_step == 3
    second.train()
    assert second.optimizer.updates == whole.optimizer.updates
    for r in range(3):
        for name, value in whole.optimizer.state(r).items():
            assert torch.equal(second.optimizer.state(r)[name], value), (r, name)
        np.testing.assert_array_equal(second.credit_states[r].baseline_K, whole.credit_states[r].baseline_K)
        for file in ("metrics.jsonl", "samples.jsonl", "probe/probe.jsonl"):
            assert metrics(second, r, file) == metrics(whole, r, file)
        assert [row["step"] for row in metrics(second, r)] == list(range(7))
        grams = sorted(p.name for p in (second.logs[r].folder / "probe").glob("gram*"))
        assert grams == [f"gram_step{s:04d}.npz" for s in (0, 2, 4, 6)]
    rewards = [row["reward_mean/brevity"] for row in metrics(whole, 1)]
    assert len(set(rewards)) > 3 and whole.credit_states[1].baseline_K[0] != rewards[0]  # the running mean is in play


def test_a_checkpoint_of_another_run_is_not_resumed_and_its_probes_are_gone(world):
    train([config(probe={"every": 1})])
    other = trainer([config(seed=5)])
    assert other.next_step == 0 and not list((other.logs[0].folder / "probe").glob("gram*"))


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_the_gate_refuses_a_sampler_that_is_off_the_policy(world, monkeypatch, factor):
    """As if the sampler's temperature were 1.1 or its log-probs not numbers; nothing is trained."""
    plain = engine.sample

    def off(adapter, prompts, generations, tokens, temperature, noise):
        rollout = plain(adapter, prompts, generations, tokens, [1.1 * t for t in temperature], noise)
        rollout.logp_NC.mul_(factor / 1.1)
        return rollout

    monkeypatch.setattr(engine, "sample", off)
    run = trainer([config()])
    before = factors(run)
    with pytest.raises(ValueError, match=r"step 0: expected the sampler's log-probs to equal .* Training would be off"):
        run.train()
    assert all(torch.equal(before[name], value) for name, value in factors(run).items())


def test_divergence_names_the_step_and_keeps_the_state_before_it(world, monkeypatch):
    """In a pack, at step 2: the NaN gradient moves nothing, and resuming starts at step 2."""
    plain = engine.accumulate
    steps = []

    def poisoned(adapter, batch, first, *rest):
        steps.append(first)
        result = plain(adapter, batch, first, *rest)
        if sum(steps) == 3:
            adapter.modules["model.layers.0.mlp.up_proj"].A_RrI.grad[1, 0, 0] = float("nan")
        return result

    configs = [c.model_copy(update={"algorithm": c.algorithm.model_copy(update={"inner_epochs": 1})}) for c in PACK]
    sound = trainer(configs, "sound")
    for step in range(2):
        sound.step(step)
    monkeypatch.setattr(engine, "accumulate", poisoned)
    run = trainer(configs)
    with pytest.raises(
        TrainingDiverged, match=r"step 2: expected a finite loss .* gradient norm nan.*work1/div"
    ) as told:
        run.train()
    assert told.value.run == 1
    kept = read_json("work1/diverged.json")
    assert kept["step"] == 2 and len(kept["rows"]) == 8 and kept["rows"][0]["example"]
    resumed = trainer(configs)
    assert resumed.next_step == 2
    assert torch.equal(resumed.optimizer.theta, sound.optimizer.theta)
    np.testing.assert_array_equal(resumed.credit_states[1].baseline_K, sound.credit_states[1].baseline_K)


def test_ratio_is_one_at_first_and_clipping_acts_later(world):
    one = metrics(train([config()], "one"))
    assert all(row["ratio_mean"] == 1 and row["clip_fraction"] == 0 for row in one)
    three = config(algorithm={"name": "grpo", "inner_epochs": 3}, optimizer={"lr": 0.1})
    many = metrics(train([three], "many"))
    assert any(row["clip_fraction"] > 0.02 for row in many) and any(row["ratio_mean"] != 1 for row in many)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_kl_is_exactly_zero_before_the_first_update_and_then_not(world, kind):
    run = config(algorithm={"name": "grpo", "beta": 0.1}, adapter={"kind": kind, "rank": 4})
    kl = [row["kl_nats_per_token"] for row in metrics(train([run]))]
    assert kl[0] == 0 and all(k > 0 for k in kl[1:])
    assert metrics(train([config()], "free"))[0]["kl_nats_per_token"] is None


def test_kl_holds_the_policy_back(world):
    def drift(beta: float) -> float:
        changes = {"algorithm": {"name": "grpo", "beta": beta}, "optimizer": {"lr": 0.003}, "steps": 12}
        return metrics(train([config(**changes)], f"beta{beta}-"))[-1]["kl_nats_per_token"]

    assert drift(10.0) < 0.2 * drift(1e-9)


def test_a_step_moves_along_the_hand_made_combination_of_the_objectives(world, monkeypatch):
    """Gradient of the step = - sum_k w_k g_k, each g_k from its own backward on the same rollout."""
    seen: list[tuple[Adapter, Batch, torch.Tensor]] = []
    plain = engine.accumulate

    def recording(adapter, batch, first, *rest):
        result = plain(adapter, batch, first, *rest)
        seen.append((adapter, batch, torch.cat([p.grad.flatten() for p in adapter.named_parameters().values()])))
        return result

    monkeypatch.setattr(engine, "accumulate", recording)
    run = trainer([config(rollout={"batch_size": 16, "num_generations": 4, "max_new_tokens": 12})])
    before = run.optimizer.theta.clone()
    run.step(0)
    adapter, batch, found = seen[0]
    run.optimizer.theta.copy_(before)
    advantages = np.array([list(row["advantages"].values()) for row in metrics(run, file="samples.jsonl")])
    assert list(metrics(run, file="samples.jsonl")[0]["advantages"]) == ["brevity", "exactness", "terse"]
    gradients = []
    for column in advantages.T:
        run.optimizer.zero_grad()
        batch.advantage_N = torch.from_numpy(column).float()
        accumulate(adapter, batch, True, None)
        gradients.append(run.optimizer.grad.clone())
    assert gradients[0].any() and not gradients[1].any() and gradients[2].any()
    torch.testing.assert_close(found, gradients[0] - 0.5 * gradients[2], atol=1e-6 * found.abs().max(), rtol=1e-4)


def test_probing_leaves_training_as_it_is(world):
    with_probe, without = train([config(probe={"every": 1})], "on"), train([config(probe={"every": 0})], "off")
    assert torch.equal(with_probe.optimizer.theta, without.optimizer.theta)
    assert len(metrics(with_probe, file="probe/probe.jsonl")) == 4
    assert not (without.logs[0].folder / "probe/probe.jsonl").read_text()


@pytest.mark.parametrize(("algorithm", "kind"), [("grpo", "lora"), ("reinforce", "lora"), ("rloo", "full")])
def test_it_learns(world, algorithm, kind):
    """Brevity, from random weights: the mean reward of five steps (320 rows) rises by 0.17 to 0.32 over four seeds.

    The difference of two such means has a standard error of 0.03.
    """
    run = config(
        algorithm={"name": algorithm},
        objectives={"brevity": {"params": {"target_words": 1, "max_words": 4}}},
        adapter={"kind": kind, "rank": 4, "alpha": 32},
        rollout={"batch_size": 64, "num_generations": 8, "max_new_tokens": 12},
        optimizer={"lr": 0.03 if kind == "lora" else 0.01},
        probe={"every": 0},
        steps=30,
    )
    reward = [row["reward_mean/brevity"] for row in metrics(train([run], std=0.3))]
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.08


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"steps": 9}, "steps"),
        ({"adapter": {"kind": "full"}}, "adapter.kind"),
        ({"adapter": {"targets": ["q_proj"]}}, "adapter.targets"),
        ({"probe": {"every": 3}}, "probe.every"),
        ({"rollout": {"batch_size": 4, "num_generations": 4, "max_new_tokens": 12}}, "rollout.batch_size"),
        ({"algorithm": {"name": "grpo", "inner_epochs": 2}}, "algorithm.inner_epochs"),
        ({"model": {"id": "another"}}, "model"),
    ],
)
def test_runs_that_can_not_share_a_pack_are_told_why(world, changes, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected .* as in the pack's first run; found"):
        trainer([config(), config(**changes)])
