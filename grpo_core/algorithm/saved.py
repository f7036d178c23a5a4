"""Save and load models with Stable-Baselines3's interface but without pickles, export and copy them."""

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.vec_env import VecEnv

from grpo_core import __version__
from grpo_core.algorithm.acting import ActingAlgorithm
from grpo_core.environments.packages import explain_missing_packages
from grpo_core.export.policy_file import export_model, find_format
from grpo_core.groups.correlation import GroupCorrelation
from grpo_core.options.rewards import RewardFunction
from grpo_core.saving import atomic_write, model_file
from grpo_core.saving.copies import reduce_model, restore_model
from grpo_core.saving.model_state import (
    ModelPath,
    choose_spaces,
    describe_model,
    describe_normalization,
    get_weights,
    make_arguments,
    make_changes,
    put_weights,
    read_model,
    wrap_like,
    write_model,
)
from grpo_core.saving.optimizer_state import describe_optimizer, put_optimizer_state
from grpo_core.spaces import check_spaces
from grpo_core.update.optimizers import ParameterGroups

# Where SB3 keeps an argument that has no attribute of its name.
_ATTRIBUTES = {"stats_window_size": "_stats_window_size"}


class SavedAlgorithm(ActingAlgorithm):
    """The base of ``GRPO`` that knows model files; ``grpo_core.saving.model_file`` describes them."""

    rng: np.random.Generator
    reward_function: RewardFunction | Any
    kl_coef: float
    ref_sync_steps: int | None
    _ref_policy: ActorCriticPolicy | None
    _ref_timesteps: int
    #: The policy's and the value network's parameters.
    _parameter_groups: ParameterGroups
    _group_correlation: GroupCorrelation
    #: Names of the reward functions that the model was trained with, which its file cannot hold.
    _lost_reward_function: str | list[str] | None = None
    #: Whether no update has yet shown that the numbers of the file are fit to be trained on.
    _is_just_loaded = False

    def __init__(self, policy: Any, env: Any, *args: Any, **kwargs: Any) -> None:
        with _explain_missing(env):
            super().__init__(policy, env, *args, **kwargs)

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Make what is given by its id, and check the spaces before SB3's wrappers stumble over them."""
        with _explain_missing(env):
            made = maybe_make_env(env, verbose)
        check_spaces(made)
        assert made is not None, "check_spaces has refused it"
        return OnPolicyAlgorithm._wrap_env(made, verbose, monitor_wrapper)

    def save(
        self,
        path: ModelPath,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model in one zip of JSON and plain arrays; a file of that name is replaced atomically.

        The statistics of a ``VecNormalize`` are saved with it. Of reward functions only the names are saved; the
        reference policy and the simulators' states are not, so training goes on from new episodes.

        :param path: Where to; ``.zip`` is appended to a name without a suffix, and a missing folder is made. Or an
            open binary file.
        :param exclude: Not supported, see ``include``.
        :param include: Not supported: the file's content is fixed, because it is never unpickled.
        :raises ValueError: If ``exclude`` or ``include`` is given.
        :raises grpo_core.saving.model_file.ModelFileError: If it could not be loaded, as one of 2 GiB or with
            weights of SB3's own layers that are not finite. A server reads up to 128 MiB.
        """
        if exclude is not None or include is not None:
            raise ValueError("exclude and include are not supported: a GRPO model file has a fixed content.")
        write_model(path, self.to_bytes())

    def to_bytes(self, **provenance: Any) -> bytes:
        """Return the content of the model file.

        :param provenance: JSON-serialisable facts to keep in the metadata, such as the environment's id.
        """
        loaded = self._loaded if self.env is None else None
        settings, statistics = describe_normalization(self._vec_normalize_env, loaded)
        meta = {**describe_model(self, __version__), **provenance, **settings}
        moments: model_file.Arrays = {}
        if self._follow_layers():
            meta["optimizer"], moments = describe_optimizer(self.policy.optimizer, self.policy)
        return model_file.to_bytes(meta, get_weights(self.policy), moments, statistics)

    @classmethod
    def load(
        cls,
        path: ModelPath,
        env: GymEnv | str | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a model without unpickling anything. It needs neither the environment nor the reward function.

        :param path: File name, with or without ``.zip``, or an open binary file, which is read from its beginning.
        :param env: Environment to go on training in, or its id; its spaces must be those of the model. If the model was
            trained in a ``VecNormalize``, it is put into one unless it is in one, and the statistics of the file are
            restored. It is seeded with ``seed + num_timesteps``.
        :param custom_objects: The same as ``kwargs`` under SB3's name; unknown names are ignored. ``observation_space``
            and ``action_space`` may have other bounds than those of the file.
        :param print_system_info: Print the versions that the model was saved with.
        :param force_reset: Start new episodes; groups always do after loading.
        :param kwargs: Arguments of ``GRPO`` to change, such as ``reward_function`` or ``learning_rate``. A policy class
            or features extractor of your own is not in the file, so pass it: ``policy=MyPolicy``,
            ``policy_kwargs=dict(features_extractor_class=MyExtractor)``; likewise an optimizer or activation that is
            not torch's own, or an activation made with arguments. The other ``policy_kwargs`` are.
        :raises grpo_core.saving.model_file.ModelFileError: If the file is damaged or was not saved by GRPO.
        :raises ValueError: If the environment's spaces differ, or an argument is unknown or out of range.
        """
        content = read_model(path)
        meta, changes = content.meta, make_changes(custom_objects or {}, kwargs)
        if print_system_info:
            print("Saved with", meta["versions"])  # noqa: T201  # what the argument asks for
        arguments = make_arguments(content, changes)
        model = cls(policy=arguments.pop("policy"), env=None, device=device, _init_setup_model=False)
        # As attributes, so that the constructor of a subclass may choose some of them itself.
        if arguments["reward_function"] is None and "reward_function" not in changes:
            del arguments["reward_function"]  # a subclass may bring one that the file only names
        for name, value in arguments.items():
            setattr(model, _ATTRIBUTES.get(name, name), value)
        model.observation_space, model.action_space = choose_spaces(content, custom_objects or {})
        model.n_envs = meta["n_envs"]
        if model.reward_function is None and "reward_function" not in changes:
            model._lost_reward_function = meta["reward_function"]
        if env is not None:
            vec_env = wrap_like(content, model._wrap_env(env, model.verbose))
            model.n_envs = vec_env.num_envs
        model._setup_model()
        if env is not None:
            model.set_env(vec_env, force_reset=force_reset)
            if model.seed is not None:  # else SB3 would draw one from NumPy's process-wide generator
                vec_env.seed(model.seed + meta["num_timesteps"])  # other episodes than those it began with
        _warn_of_lost_state(model._load_arrays(content))
        model.num_timesteps, model._n_updates = meta["num_timesteps"], meta["n_updates"]
        if "group_correlation" in meta:
            model._group_correlation = GroupCorrelation.from_json(meta["group_correlation"])
        if "seed" not in changes:
            model.rng.bit_generator.state = meta["rng_state"]
        model._loaded = content
        return model

    def export(self, path: str | Path, with_masks: bool = False) -> None:
        """Write the policy for programs without this library; it chooses the most likely action within its bounds.

        The statistics of a ``VecNormalize`` are part of it, so it takes observations as the environment gives them,
        but images with their channels first.

        :param path: Ends in ``.onnx``, or in ``.pt`` for TorchScript. A missing folder is made.
        :param with_masks: Whether it takes ``action_masks`` beside every observation, as ``predict`` does.
        :raises ValueError: If the path ends otherwise, the policy has layers of your own, or its actions no masks.
        :raises grpo_core.export.policy_file.MissingPackageError: If the format's package is not installed.
        """
        target = Path(path)
        content = model_file.from_bytes(self.to_bytes(), limits=model_file.LIBRARY_LIMITS)
        exported = export_model(content, find_format(target), with_masks)
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write.write_atomic(target, exported)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds: the environment and its episodes too, but neither logger nor rollout.

        :raises TypeError: If the environment is in worker processes.
        """
        return reduce_model(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        restore_model(self, state)

    def _check_lost_reward_function(self) -> None:
        """Check that there is a reward function if the model was trained with one.

        :raises ValueError: If its file could not hold it, and it was not given again.
        """
        if self._lost_reward_function is not None and self.reward_function is None:
            raise ValueError(
                f"this model was trained with reward_function '{self._lost_reward_function}', which a model file "
                "does not hold; pass it to GRPO.load(path, env=env, reward_function=...) or set "
                "model.reward_function before learn()."
            )

    def _warn_of_lost_reference(self) -> None:
        """Warn where training goes on after ``load``: the reference policy is then another one, if none renews it."""
        if self._loaded is None or self._ref_policy is not None or self.kl_coef == 0 or self.ref_sync_steps is not None:
            return
        warnings.warn(
            f"kl_coef={self.kl_coef} now keeps the policy close to the one that was loaded, not to the one that "
            "training began with: a model file holds no reference policy. Pass reset_num_timesteps=True to begin anew "
            "from the loaded policy without this warning, or kl_coef=0.0 to GRPO.load(path, env=env) to train without.",
            stacklevel=3,
        )

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Load parameters in place.

        :param load_path_or_dict: A GRPO model file, or what ``get_parameters`` returned. The moments in a file are for
            the optimizer that the model began with; one that was put in its place keeps its own.
        :param exact_match: Whether a dict must hold everything. A file always does.
        :param device: Has no effect: parameters stay on the model's device.
        :raises ValueError: If the weights are of other layers, the optimizer's state is of another algorithm, or
            ``exact_match=False`` is given with a file.
        """
        if isinstance(load_path_or_dict, dict):
            self._check_optimizer_state(load_path_or_dict)
            self._follow_layers()
            super().set_parameters(load_path_or_dict, exact_match, device)
        elif not exact_match:
            raise ValueError("exact_match=False is for a dict of parameters: a GRPO model file is loaded as a whole.")
        else:
            _warn_of_lost_state(self._load_arrays(read_model(load_path_or_dict)))

    def _check_optimizer_state(self, parameters: Mapping[str, Any]) -> None:
        """Refuse another algorithm's optimizer before the weights beside it are taken."""
        groups = (parameters.get("policy.optimizer") or {}).get("param_groups")
        if groups is not None and len(groups) != len(self.policy.optimizer.param_groups):
            raise ValueError(
                f"the optimizer's state has {len(groups)} groups of parameters, and this model's optimizer "
                f"{len(self.policy.optimizer.param_groups)}; take another algorithm's weights alone with "
                'set_parameters({"policy": parameters["policy"]}, exact_match=False).'
            )

    def _load_arrays(self, content: model_file.ModelContent) -> str | None:
        """Put the arrays of a file into the model.

        :return: What of the optimizer's state is lost, in words; None if nothing.
        """
        put_weights(self.policy, content.weights)
        self._is_just_loaded = True
        return put_optimizer_state(self.policy.optimizer, self.policy, content) if self._follow_layers() else None

    def _follow_layers(self) -> bool:
        """Let the optimizer train the layers that the policy has now, before its state is read or written.

        :return: False if it was put in place later: its state fits none that loading builds.
        """
        if not self._parameter_groups.built(self.policy.optimizer):
            return False
        self._parameter_groups.follow(self.policy)
        return True


def _warn_of_lost_state(lost: str | None) -> None:
    if lost is not None:
        warnings.warn(f"{lost}; what is missing begins anew.", stacklevel=3)


def _explain_missing(env: Any) -> AbstractContextManager[None]:
    return explain_missing_packages(env, f"env '{env}' cannot be made: " if isinstance(env, str) else "")
