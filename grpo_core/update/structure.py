"""Look at a policy as it is now: which layers it has, and what watches them.

The actor in NumPy and the learner in ``grpo_core.fast`` know SB3's own layers. A user may replace a layer, tie weights
or hook into a forward pass at any time; then both have to leave the policy to torch.
"""

from typing import Any

import torch
from stable_baselines3.common import distributions, torch_layers
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers

from grpo_core.replaced_methods import KnownMethods

# The result of ``read_structure``; equal where policies compute the same from equal weights.
Structure = tuple[Any, ...]

# Methods through which SB3 acts and learns. One that is set on an object replaces that of its class.
_METHODS = frozenset(
    {
        *("forward", "evaluate_actions", "get_distribution", "predict_values", "extract_features", "_predict"),
        *("forward_actor", "forward_critic", "_get_action_dist_from_latent"),
    }
)

# The same on the classes whose work the actor and the learner in NumPy do themselves.
_DRAWING = ("sample", "mode", "log_prob", "entropy", "get_actions", "proba_distribution", "actions_from_params")
_KNOWN_METHODS = KnownMethods(
    [
        *(ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy),
        *(torch_layers.MlpExtractor, torch_layers.FlattenExtractor),
        *(torch_layers.NatureCNN, torch_layers.CombinedExtractor),
        *(torch.nn.Linear, torch.nn.Conv2d, torch.nn.Flatten, torch.nn.Sequential),
        *(torch.nn.Tanh, torch.nn.ReLU, torch.nn.ELU, torch.nn.LeakyReLU),
        *(distributions.CategoricalDistribution, distributions.MultiCategoricalDistribution),
        *(distributions.BernoulliDistribution, distributions.DiagGaussianDistribution),
        *(torch.distributions.Categorical, torch.distributions.Bernoulli, torch.distributions.Normal),
    ],
    [*_METHODS, *_DRAWING, "log_prob_from_params", "__call__", "_call_impl"],
)
_KNOWN_STEPS = KnownMethods([torch.optim.Adam], ["step", "zero_grad"])


def unwrap_compiled(layer: Any) -> Any:
    """Return the policy or layer inside what ``torch.compile`` returns, which shares it; any other as it is."""
    return getattr(layer, "_orig_mod", layer)


def read_structure(policy: ActorCriticPolicy) -> Structure:
    """List the layers of a policy, their kinds and the shapes of their parameters, and which parameters are shared."""
    rows: list[Any] = [*_read_flags(policy)]
    names: dict[int, str] = {}
    stack: list[tuple[str, torch.nn.Module]] = [("", unwrap_compiled(policy))]
    while stack:
        name, layer = stack.pop()
        if id(layer) in names:
            rows.append((name, names[id(layer)]))
            continue
        names[id(layer)] = name
        if (compiled := unwrap_compiled(layer)) is not layer:
            stack.append((name, compiled))
            continue
        parameters: list[Any] = []
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                own_name = names.setdefault(id(parameter), f"{name}.{key}")
                parameters.append((key, own_name, parameter.shape, parameter.dtype))
        rows.append((name, type(layer), *_read_options(layer), parameters, [*layer._buffers.keys()]))
        stack.extend((f"{name}.{key}", child) for key, child in layer._modules.items() if child is not None)
    return tuple(rows)


class StructureCheck:
    """Tells whether a policy still has the layers that it was built with, many times as fast as reading them.

    :param policy: The policy as it was built.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._built = read_structure(policy)
        self._forget()

    def _forget(self) -> None:
        self._key: list[Any] = []
        self._kept: list[torch.nn.Module] = []
        self._answer = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_built": self._built}  # a copy has layers of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def is_as_built(self, policy: ActorCriticPolicy) -> bool:
        """Tell whether the policy computes what it was built to compute."""
        layers = list_layers(policy)
        key: list[Any] = [
            (id(layer), type(layer), [*map(id, layer._parameters.values())], *_read_options(layer)) for layer in layers
        ]
        key.append(_read_flags(policy))
        if key != self._key:
            # The layers are kept, so that no others get their ids later.
            self._key, self._kept = key, [*layers, *policy.parameters()]  # type: ignore[list-item]
            self._answer = read_structure(policy) == self._built
        return self._answer


def _read_flags(policy: ActorCriticPolicy) -> tuple[Any, ...]:
    """Return a policy's flags, the kind of its distribution, and which methods of that are replaced."""
    distribution = policy.action_dist
    replaced = [name for name, value in vars(distribution).items() if callable(value)]
    # A policy that was loaded may have None for False.
    flags = map(bool, (policy.share_features_extractor, policy.normalize_images, policy.squash_output))
    return type(distribution), replaced, *flags


def _read_options(layer: torch.nn.Module) -> tuple[bool, str]:
    """Return whether methods of a layer are replaced, and the options of one without parameters, as in LeakyReLU."""
    options = "" if layer._parameters or layer._modules else layer.extra_repr()
    return not _METHODS.isdisjoint(layer.__dict__), options


def list_layers(policy: Any) -> list[torch.nn.Module]:
    """List a policy and all layers inside it, many times as fast as ``modules()``; shared ones occur repeatedly."""
    layers: list[Any] = [policy]
    for layer in layers:
        layers.extend(child for child in layer._modules.values() if child is not None)
    return layers


def list_parameters(policy: Any) -> list[torch.nn.Parameter]:
    """List the parameters of all layers, many times as fast as ``parameters()``; shared ones occur repeatedly."""
    return [p for layer in list_layers(policy) for p in layer._parameters.values() if p is not None]


def is_forward_watched(policy: ActorCriticPolicy) -> bool:
    """Tell whether a forward pass calls hooks or methods that were replaced on SB3's or torch's classes."""
    if _KNOWN_METHODS.are_replaced():
        return True
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return True
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in list_layers(policy))


def is_learning_watched(policy: ActorCriticPolicy) -> bool:
    """Tell whether anything sees or changes the gradients or the steps of the optimizer."""
    optimizer: Any = policy.optimizer
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return True
    # A scheduler of learning rates counts steps by replacing the method of the optimizer.
    if not {"step", "zero_grad"}.isdisjoint(vars(optimizer)) or _KNOWN_STEPS.are_replaced():
        return True
    if torch_optimizers._global_optimizer_pre_hooks or torch_optimizers._global_optimizer_post_hooks:
        return True
    if torch_modules._global_backward_hooks or torch_modules._global_backward_pre_hooks:
        return True
    parameters: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        return True
    return any(layer._backward_hooks or layer._backward_pre_hooks for layer in list_layers(policy))
