"""Build the optimizer, keep it in step with the policy's layers, and set its step sizes."""

from collections.abc import Iterable
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo_core.options.checks import refuse
from grpo_core.options.policies import needs_closure
from grpo_core.update.policies import split_parameters
from grpo_core.update.structure import list_parameters

# The policy's parameters, and the value network's.
Parts = tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]


class ParameterGroups:
    """Knows which parameters are the policy's and which the value network's, also after layers were replaced.

    It gives the policy an optimizer in which both have a group, and so a step size. One that a policy class of the
    user's own has built otherwise than SB3's stays as it is.

    :param policy: The policy as SB3 builds it.
    :param learning_rate: The first step size.
    """

    def __init__(self, policy: ActorCriticPolicy, learning_rate: float) -> None:
        self._parts = split_parameters(policy)
        self._key = _list_ids(policy)
        self._built, self._follows_layers = policy.optimizer, False
        if _is_built_as_by_sb3(policy):
            groups = [{"params": parameters} for parameters in self._parts if parameters]
            self._follows_layers = True
            policy.optimizer = self._built = policy.optimizer_class(
                groups,
                lr=learning_rate,  # type: ignore[call-arg]  # every optimizer takes it, its base class does not
                **policy.optimizer_kwargs,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_key": ()}  # a copy has parameters of its own

    def built(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether an optimizer is the one that the policy began with."""
        return optimizer is self._built

    def follow(self, policy: ActorCriticPolicy) -> Parts:
        """Return the parameters as they are now, and let the optimizer train the layers that the policy has now.

        An optimizer that the user has put in place trains what it was given.

        :raises ValueError: If the optimizer cannot take the steps of a minibatch, or trains nothing of the policy.
        """
        key = _list_ids(policy)
        if key != self._key:
            self._parts, self._key = split_parameters(policy), key
            if self._follows_layers and self.built(policy.optimizer):
                _replace_parameters(policy.optimizer, self._parts)
        if not self.built(policy.optimizer):
            _check_optimizer(policy)
        return self._parts

    def scale_value_rate(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        """Multiply the step size of the groups that hold nothing but the value network.

        An optimizer with one group has one step size for everything.
        """
        if len(optimizer.param_groups) < 2:
            return
        of_values = {id(p) for p in self._parts[1]}
        for group in optimizer.param_groups:
            if of_values.issuperset(id(p) for p in group["params"]):
                group["lr"] *= factor


def forget_zero_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Let an optimizer pass over the parameters that the loss does not move, or its momentum would move them on."""
    for p in parameters:
        if p.grad is not None and not p.grad.any():
            p.grad = None


def _list_ids(policy: ActorCriticPolicy) -> tuple[Any, ...]:
    return tuple([(id(p), p.requires_grad) for p in list_parameters(policy)])


def _is_built_as_by_sb3(policy: ActorCriticPolicy) -> bool:
    """Tell whether a policy's optimizer is of its class and has one group, for all parameters.

    If it has some that the policy lacks, the constructor of a subclass replaced layers after SB3's had built it.
    """
    if type(policy.optimizer) is not policy.optimizer_class or len(policy.optimizer.param_groups) != 1:
        return False
    trained, present = {id(p) for p in policy.optimizer.param_groups[0]["params"]}, {id(p) for p in policy.parameters()}
    return trained == present or not trained <= present


def _replace_parameters(optimizer: torch.optim.Optimizer, parts: Parts) -> None:
    """Let an optimizer train other parameters; it keeps the moments of those that stay."""
    groups = optimizer.param_groups
    # A user may have added groups behind them, for parameters of no layer of the policy.
    for group, parameters in zip(groups, parts if len(groups) > 1 else [parts[0] + parts[1]], strict=False):
        group["params"] = parameters
    present = {id(p) for group in groups for p in group["params"]}
    for p in [p for p in optimizer.state if id(p) not in present]:
        del optimizer.state[p]


def _check_optimizer(policy: ActorCriticPolicy) -> None:
    optimizer, name = policy.optimizer, type(policy.optimizer).__name__
    if needs_closure(type(optimizer)):
        refuse(
            "policy.optimizer", name, "its step evaluates the loss several times, GRPO's once; use torch.optim.Adam."
        )
    present = {id(p) for p in policy.parameters()}
    if not any(id(p) in present for group in optimizer.param_groups for p in group["params"]):
        refuse(
            "policy.optimizer",
            name,
            "it trains no parameter of the policy, whose layers may have been replaced since; build another, such as "
            f"torch.optim.{name}(model.policy.parameters(), lr=1e-3).",
        )
