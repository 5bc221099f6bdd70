"""StackedAdamW against torch's AdamW with torch's clipping, run by run."""

import pytest
import torch
from torch import nn

from gradlab.checkpoint import fit
from gradlab.config import OptimizerConfig
from gradlab.optimizer import StackedAdamW, scheduled_lr

CONFIGS = [
    OptimizerConfig(lr=3e-2, weight_decay=0.1, max_grad_norm=0.5, warmup_steps=3),
    OptimizerConfig(lr=1e-3, betas=(0.8, 0.99), max_grad_norm=None, schedule="linear"),
    OptimizerConfig(lr=1e-1, betas=(0.0, 0.95), eps=1e-4, max_grad_norm=3.0),
]
SHAPES = [(4, 6), (5,), (2, 3, 2)]
STEPS = 20


def start(run: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(run)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gradient(run: int, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + 100 * run + step)
    return [torch.randn(shape, generator=generator) * (0.1 + step % 3) for shape in SHAPES]


def with_torch(run: int) -> list[torch.Tensor]:
    config = CONFIGS[run]
    parameters = [nn.Parameter(p) for p in start(run)]
    adam = torch.optim.AdamW(parameters, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    for step in range(STEPS):
        for parameter, g in zip(parameters, gradient(run, step), strict=True):
            parameter.grad = g
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        adam.param_groups[0]["lr"] = scheduled_lr(config, step, STEPS)
        adam.step()
    return [p.detach() for p in parameters]


def with_ours(runs: list[int], change=lambda run, step, gradients: gradients) -> list[list[torch.Tensor]]:
    """Parameters of every run after STEPS steps in one stack."""
    parameters = [nn.Parameter(torch.stack(own)) for own in zip(*map(start, runs), strict=True)]
    optimizer = StackedAdamW(parameters, True, [CONFIGS[r] for r in runs], [STEPS] * len(runs))
    for step in range(STEPS):
        optimizer.zero_grad()
        every = [change(r, step, gradient(r, step)) for r in runs]
        loss = sum((p * torch.stack(g)).sum() for p, g in zip(parameters, zip(*every, strict=True), strict=True))
        loss.backward()
        optimizer.step(step, optimizer.gradient_norms())
    return [[p.detach()[i].clone() for p in parameters] for i in range(len(runs))]


@pytest.mark.parametrize("run", range(len(CONFIGS)))
def test_one_run_equals_torch(run):
    (found,) = with_ours([run])
    for ours, theirs in zip(found, with_torch(run), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_stacked_runs_equal_separate_ones_bit_for_bit():
    """Learning rates, betas, eps, decay, schedule and clip all differ."""
    for run, together in enumerate(with_ours([0, 1, 2])):
        (alone,) = with_ours([run])
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_an_exploding_gradient_stays_in_its_run():
    quiet = with_ours([0, 1, 2])
    loud = with_ours([0, 1, 2], lambda run, step, g: [x * 1e12 for x in g] if run == 0 else g)
    assert not torch.equal(quiet[0][0], loud[0][0])
    for run in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(quiet[run], loud[run], strict=True))


def test_what_is_zero_with_zero_gradient_never_moves():
    """The padding of a smaller rank: zero weight, zero gradient, whatever decay and momentum."""
    parameter = nn.Parameter(torch.randn(2, 4, 3))
    parameter.data[1, 2:] = 0
    optimizer = StackedAdamW([parameter], True, [CONFIGS[0], CONFIGS[0]], [STEPS, STEPS])
    for step in range(STEPS):
        optimizer.zero_grad()
        (parameter[0].square().sum() + parameter[1, :2].square().sum()).backward()
        optimizer.step(step, optimizer.gradient_norms())
    assert not parameter[1, 2:].any()


def test_norms_are_before_clipping_and_by_run():
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 2))]
    optimizer = StackedAdamW(parameters, True, CONFIGS[:2], [1, 1])
    (parameters[0][0].sum() * 3 + parameters[1][0].sum() * 4 + parameters[1][1].sum() * 100).backward()
    torch.testing.assert_close(optimizer.gradient_norms(), torch.tensor([27 + 32.0, 20000.0]).sqrt())


def test_restored_state_goes_on_exactly():
    def fresh():
        parameter = nn.Parameter(torch.ones(2, 3))
        return parameter, StackedAdamW([parameter], True, CONFIGS[:2], [9, 9])

    def advance(parameter, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            (parameter * (step + 1)).square().sum().backward()
            optimizer.step(step, optimizer.gradient_norms())

    whole, first, second = fresh(), fresh(), fresh()
    advance(*whole, range(9))
    advance(*first, range(4))
    for run in range(2):
        second[1].restore(run, first[1].state(run))
    second[1].updates = first[1].updates
    advance(*second, range(4, 9))
    assert torch.equal(second[0], whole[0]) and torch.equal(second[1].v_RP, whole[1].v_RP)


def test_schedules_by_hand():
    warm = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [scheduled_lr(warm, s, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    linear = OptimizerConfig(lr=1.0, warmup_steps=2, schedule="linear")
    assert [scheduled_lr(linear, s, 6) for s in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert scheduled_lr(OptimizerConfig(lr=1.0, warmup_steps=5, schedule="linear"), 2, 3) == 0.6


def test_a_state_fits_into_a_pack_of_larger_or_smaller_rank():
    """The leading corner is the run's own; what a pack pads beyond it is zero, whatever stood there."""
    wide = torch.full((3, 4), 7.0)
    fit(wide, torch.ones(2, 4))
    assert wide.tolist() == [[1.0] * 4, [1.0] * 4, [0.0] * 4]
    narrow = torch.full((2, 2), 7.0)
    fit(narrow, torch.ones(2, 3))
    assert narrow.tolist() == [[1.0, 1.0], [1.0, 1.0]]
