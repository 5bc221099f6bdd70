"""Sampling completions from the policy. `sample` is the whole interface."""

from gradlab.rollout.sampler import sample, uniforms

__all__ = ["sample", "uniforms"]
