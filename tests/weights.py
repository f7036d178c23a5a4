"""The weights of a model, to compare with those of another one or of before."""

import torch

from grpo import GRPO

Weights = dict[str, torch.Tensor]


def copy_weights(model: GRPO) -> Weights:
    """Copy the parameters of the policy and the value network."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.policy.state_dict().items()}


def is_same(first: Weights, second: Weights) -> bool:
    """Compare parameters bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
