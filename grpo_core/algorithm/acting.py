"""Act with a policy: choose actions, and copy it into an actor that is faster and does not change any more."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from grpo_core.actor.actor import Actor, PolicyActor
from grpo_core.actor.normalization import ObservationStatistics
from grpo_core.groups.normalization import Normalizer
from grpo_core.saving.model_file import ModelContent
from grpo_core.saving.model_state import get_weights
from grpo_core.update.policies import copy_policy, predict_masked
from grpo_core.update.seeding import borrow_torch_generator
from grpo_core.update.structure import StructureCheck, is_forward_watched
from grpo_core.update.torch_actor import TorchActor


class ActingAlgorithm(OnPolicyAlgorithm):
    """The base of ``GRPO`` that acts, through NumPy where that computes what the policy computes."""

    # An argument of ``GRPO``.
    antithetic_actions: bool
    #: The policy's layers as they were built, whether some of them are of the user's own make, and how a file describes
    #: them.
    _structure: StructureCheck
    _has_own_parts: bool
    _network: dict[str, Any]
    #: Draws the actions of ``predict``.
    _predict_rng: np.random.Generator
    #: The file that the model came from.
    _loaded: ModelContent | None = None
    #: Whether ``predict`` has found out whether it lacks a ``VecNormalize``.
    _is_normalization_checked = False

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Choose actions as ``BaseAlgorithm.predict`` does; drawn actions come from the model's own generator.

        :param observation: One observation, ``observation_shape``, or several, ``(batch_size, *observation_shape)``; a
            dict of such where observations are. Normalised already where training had a ``VecNormalize``; a warning
            says so where there is no environment. ``make_actor`` takes them as the environment gives them.
        :param state: Returned as it is: no policy here is recurrent.
        :param episode_start: Not used, for the same reason.
        :param deterministic: Take the most likely actions instead of drawing them.
        :param action_masks: Legal actions, as sb3-contrib lays them out: flags ``(n_bits,)``, or
            ``(batch_size, n_bits)`` for several observations. None where all are.
        :return: Actions, ``action_shape`` or ``(batch_size, *action_shape)``, within a Box's bounds; and ``state``.
        :raises ValueError: If observations or masks are of another shape.
        """
        self._warn_of_lost_normalization()

        def choose() -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
            if action_masks is None:
                return super(ActingAlgorithm, self).predict(observation, state, episode_start, deterministic)
            return predict_masked(self.policy, observation, action_masks, deterministic), state

        if deterministic:
            return choose()
        with borrow_torch_generator(self._predict_rng, self.policy.device):
            return choose()

    def _warn_of_lost_normalization(self) -> None:
        """Warn once where no environment applies the statistics that the model's file holds of observations."""
        if self.env is not None or self._is_normalization_checked:
            return
        self._is_normalization_checked = True
        if self._freeze_observation_statistics() is None:
            return
        warnings.warn(
            "predict() takes normalised observations, because this model was trained with VecNormalize, but no "
            "environment that normalises them was loaded. On raw observations its actions are wrong: load it with "
            "GRPO.load(path, env=env) and give predict() the observations of model.get_env(), or ask actor = "
            "model.make_actor(), which normalises: actor.clip_actions(actor.best_actions(observations)).",
            stacklevel=3,
        )

    def make_actor(self) -> PolicyActor:
        """Copy the policy, its value network and the statistics of ``VecNormalize`` as they are now into an ``Actor``.

        It takes batches of observations as the environment gives them, before any normalisation, images with their
        channels first or last, and refuses those of other shapes, NaN and infinity. A policy with layers of your own
        is run by torch, slower and in one thread at a time.
        """
        if self._is_known_to_numpy():
            return replace(self.make_numpy_actor(), checks_observations=True)
        return TorchActor(copy_policy(self.policy), self._freeze_observation_statistics(), checks_observations=True)

    def _make_rollout_actor(self) -> PolicyActor:
        """Make an actor for while the policy stays as it is; ``make_actor`` copies it."""
        if self._plays_by_numpy():
            return self.make_numpy_actor()
        return TorchActor(self.policy, self._freeze_observation_statistics())

    def _plays_by_numpy(self) -> bool:
        """Tell whether rollouts are played through NumPy; torch would not draw opposite noise."""
        return self._is_known_to_numpy() and (self.antithetic_actions or not self._convolves_on_gpu())

    def make_numpy_actor(self) -> Actor:
        """Copy a policy with SB3's own layers as ``make_actor`` does, into what is served."""
        return Actor.from_weights(
            self.observation_space,
            self.action_space,
            self._network,
            get_weights(self.policy),
            self._freeze_observation_statistics(),
        )

    def _freeze_observation_statistics(self) -> ObservationStatistics | None:
        if self.env is None and self._loaded is not None:
            return self._loaded.get_observation_statistics()
        return Normalizer(self._vec_normalize_env).freeze()

    def _is_known_to_numpy(self) -> bool:
        """Tell whether the actor in NumPy computes what the policy computes now, and no hook watches that."""
        return self._has_known_layers() and not is_forward_watched(self.policy)

    def _has_known_layers(self) -> bool:
        """Tell whether the policy has the layers that SB3 builds, and none other."""
        return not self._has_own_parts and self._has_built_layers()

    def _has_built_layers(self) -> bool:
        """Tell whether the policy has the layers that it was built with."""
        return self._structure.is_as_built(self.policy)

    def _convolves_on_gpu(self) -> bool:
        """Tell whether to act where the policy is: a GPU convolves images several times as fast as NumPy."""
        layers = self.policy.modules()
        return self.policy.device.type == "cuda" and any(isinstance(layer, torch.nn.Conv2d) for layer in layers)
