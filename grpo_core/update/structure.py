"""See what layers a policy consists of as it is now, and what watches it.

The actor in NumPy and the learner in ``grpo_core.fast`` know SB3's own layers. A user may replace a layer, tie weights
or hook into a forward pass at any time; then both have to leave the policy to torch.
"""

from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers

# What ``read_structure`` returns; equal where policies compute the same from equal weights.
Structure = tuple[Any, ...]

_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
# Methods through which SB3 acts and learns. One that is set on an object replaces that of its class.
_METHODS = frozenset(
    {
        *("forward", "evaluate_actions", "get_distribution", "predict_values", "extract_features", "_predict"),
        *("forward_actor", "forward_critic", "_get_action_dist_from_latent"),
    }
)


def unwrap_compiled(layer: Any) -> Any:
    """Return the policy or layer inside what ``torch.compile`` returns, which shares it; any other as it is."""
    return getattr(layer, "_orig_mod", layer)


def read_structure(policy: ActorCriticPolicy) -> Structure:
    """List the layers of a policy, their kinds and the shapes of their parameters, and which parameters are shared."""
    rows: list[Any] = [type(policy.action_dist), policy.share_features_extractor, policy.normalize_images]
    names: dict[int, str] = {}
    stack: list[tuple[str, torch.nn.Module]] = [("", unwrap_compiled(policy))]
    while stack:
        name, layer = stack.pop()
        if id(layer) in names:
            rows.append((name, names[id(layer)]))
            continue
        names[id(layer)] = name
        if (compiled := layer._modules.get("_orig_mod")) is not None:  # as ``unwrap_compiled``
            stack.append((name, compiled))
            continue
        parameters: list[Any] = []
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                own_name = names.setdefault(id(parameter), f"{name}.{key}")
                parameters.append((key, own_name, parameter.shape, parameter.dtype))
        replaced = not _METHODS.isdisjoint(layer.__dict__)
        options = "" if parameters or layer._modules else layer.extra_repr()
        rows.append((name, type(layer), replaced, options, parameters, list(layer._buffers)))
        stack.extend((f"{name}.{key}", child) for key, child in layer._modules.items() if child is not None)
    return tuple(rows)


def is_forward_watched(policy: ActorCriticPolicy) -> bool:
    """Tell whether a forward pass calls hooks, which may see or change what the policy computes."""
    return _has_hooks(policy, _FORWARD_HOOKS) or bool(
        torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks
    )


def is_learning_watched(policy: ActorCriticPolicy) -> bool:
    """Tell whether anything sees or changes the gradients or the steps of the optimizer."""
    optimizer: Any = policy.optimizer
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return True
    # A scheduler of learning rates counts steps by replacing the method of the optimizer.
    if not {"step", "zero_grad"}.isdisjoint(vars(optimizer)):
        return True
    if torch_optimizers._global_optimizer_pre_hooks or torch_optimizers._global_optimizer_post_hooks:
        return True
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        return True
    parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        return True
    return _has_hooks(policy, _BACKWARD_HOOKS)


def _has_hooks(policy: ActorCriticPolicy, kinds: tuple[str, ...]) -> bool:
    stack: list[Any] = [policy]
    while stack:
        layer = stack.pop()
        if any(getattr(layer, kind) for kind in kinds):
            return True
        stack.extend(child for child in layer._modules.values() if child is not None)
    return False
