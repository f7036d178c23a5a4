"""GRPO for Stable-Baselines3: group relative policy optimisation with groups that branch from one simulator state."""

if __name__ == "__main__":
    # Before torch is imported, which takes seconds and which most commands do without. It also keeps a second GRPO from
    # being made, called __main__.GRPO, which nobody could import again.
    from grpo_cli import main

    raise SystemExit(main())

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from grpo_core import __version__, fast
from grpo_core.actor.actor import Actor
from grpo_core.algorithm.grouped import GroupedAlgorithm
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.vec_wrappers import warn_of_options
from grpo_core.groups.advantage import ROUNDING, Floats, GroupAdvantages, compute_group_advantages, describe_adaptive
from grpo_core.groups.correlation import GroupCorrelation
from grpo_core.groups.normalization import Normalizer
from grpo_core.groups.rollout import GroupRollout, Indices, StepBatch, draw_minibatches, warn_of_other_starts
from grpo_core.options.checks import CheckedSchedule, check_arguments, check_hyperparameters, check_noise, refuse
from grpo_core.options.choices import (
    COMPARES_IN_GROUPS,
    AdvantageScaling,
    AnchorSelection,
    Baseline,
    GroupMode,
    ImportanceLevel,
    LossNormalization,
    LossType,
    Supervision,
)
from grpo_core.options.network_json import network_to_json
from grpo_core.options.policies import POLICIES, get_policy_name
from grpo_core.options.policy_kwargs import check_built_policy, check_policy_fits, check_policy_kwargs
from grpo_core.options.rewards import Reward
from grpo_core.options.unknown_arguments import explain_unknown_arguments
from grpo_core.restoring.errors import NotBranchableError
from grpo_core.restoring.simulator import check_branchable
from grpo_core.saving.model_state import warn_if_too_large
from grpo_core.shards.shard_messages import MakeCollector
from grpo_core.spaces import Observations, check_action_space, check_observation_space, check_spaces
from grpo_core.update.losses import (
    TARGET_KL_TOLERANCE,
    compute_cispo_loss,
    compute_clipped_surrogate,
    compute_filter_weights,
    compute_kl,
    compute_sequence_ratio,
    compute_step_weights,
    compute_weighted_mean,
    measure_move,
)
from grpo_core.update.optimizers import ParameterGroups, forget_zero_gradients
from grpo_core.update.policies import (
    build_in_float32,
    compute_log_prob,
    compute_values,
    copy_policy,
    evaluate_actions,
    find_not_finite,
)
from grpo_core.update.seeding import borrow_torch_generator
from grpo_core.update.structure import StructureCheck, is_learning_watched

__all__ = ["GRPO", "RestorableWrapper", "__version__", "check_branchable"]


class GRPO(GroupedAlgorithm):
    """Group Relative Policy Optimization on a Gymnasium task.

    From each *anchor state* a *group* of ``group_size`` *branches* follows the current policy for at most
    ``horizon`` simulator steps. A step's advantage is how much better its branch did from there than its group did
    on average (paper: https://arxiv.org/abs/2402.03300, here with groups that share a simulator state instead of a
    prompt). ``baseline="group"`` needs no value network for that. The default, ``"adaptive"``, lets one judge what
    follows a branch, and subtracts only as much of the group as helps. The policy then takes PPO's clipped step
    (https://arxiv.org/abs/1707.06347), and the next anchor is a random step of a random branch.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, the class that one stands for, or a
        subclass of your own.
    :param env: A Gymnasium id, environment, or vectorised environment (``DummyVecEnv``, or ``SubprocVecEnv`` made with
        ``wrapper_class=RestorableWrapper``; in them ``VecNormalize``, ``VecFrameStack`` and the like).
    :param learning_rate: Step size of Adam; a float or a function of the remaining progress (from 1 to 0).
    :param n_steps: Simulator steps per environment and rollout, a multiple of ``group_size * horizon``; fewer are taken
        where branches end early, unless ``fill_rollouts``. With ``group_mode="episode"``, any lower bound: groups are
        completed.
    :param batch_size: Live steps per minibatch, at least 1.
    :param n_epochs: Passes over each rollout, at least 1.
    :param gamma: Discount factor in [0, 1].
    :param gae_lambda: Bias-variance trade-off in [0, 1] of the lambda-returns, where values are bootstrapped.
    :param clip_range: Trust interval of the probability ratio, > 0; a float or a function of the remaining progress.
    :param ent_coef: Weight of the entropy bonus, >= 0.
    :param vf_coef: Weight of the value network's squared error, >= 0. Its gradient is clipped apart from the policy's.
    :param max_grad_norm: Largest gradient norm, >= 0, for the policy and for the value network each.
    :param target_kl: Skip the remaining updates of a rollout once the approximate KL exceeds 1.5 times this, > 0; None
        skips none.
    :param stats_window_size: Episodes averaged in ``rollout/ep_rew_mean``.
    :param tensorboard_log: Folder for TensorBoard files; None writes none.
    :param policy_kwargs: Arguments of SB3's policies: ``net_arch``, ``activation_fn``, ``ortho_init``,
        ``log_std_init``, ``share_features_extractor``, ``features_extractor_class``, ``features_extractor_kwargs``,
        ``normalize_images``, ``optimizer_class``, ``optimizer_kwargs``. Layers that are not SB3's own, or that were
        changed after construction, act and learn through torch, which is slower.
    :param verbose: 0 silent, 1 tables, 2 debugging.
    :param seed: Seed of this model's own generators and of the environments; None draws a fresh one. No
        process-wide generator is seeded, so models in several threads stay reproducible.
    :param device: ``"auto"`` takes CUDA if present, else the CPU.
    :param _init_setup_model: Whether to build the networks at once.
    :param reward_function: Maps ``state (B, n)``, ``action (B, m)``, ``next_state (B, n)`` to rewards ``(B, 1)``, as
        tensors (states as a dict of such where observations are). Or several, where None stands for the environment's
        own reward. None alone takes just that. ``rollout/ep_rew_mean`` always reports the environment's own.
    :param reward_weights: Weights of several reward functions, 1 each unless given.
    :param group_mode: ``"branch"``: groups start from states on the way. ``"action"``: likewise, and their first
        actions are all those there are (``group_size`` of a Discrete space). ``"episode"``: a group shares one seeded
        reset and plays whole episodes. ``"auto"``: ``"branch"`` if restoring the environment is proven
        exact and pays off, else ``"episode"`` with a warning that says why not.
    :param group_size: Branches per anchor state, at least 2.
    :param horizon: Most simulator steps per branch. None: 32, or for whole episodes no limit but a cap of 10,000, which
        cuts one as a time limit does, with a warning.
    :param supervision: ``"process"``: a step is credited with what follows it. ``"outcome"``: with what its whole
        branch earned.
    :param baseline: What a step's return is compared with. ``"group"``: the group's mean at the same step, as in GRPO.
        ``"leave_one_out"``: that of the others of the group (RLOO). ``"residual"``: GAE minus the group's mean GAE.
        ``"adaptive"``: GAE minus as much of the others' mean GAE as earlier rollouts show to help, from none to all.
        ``"value"``: GAE alone, PPO's advantage on branches. For ablations: ``"timestep"``, the mean over all groups at
        the same step; ``"batch"``, the mean of the rollout; ``"none"``.
    :param advantage_scaling: Divide advantages by the standard deviation of the ``"group"``, of the whole
        ``"batch"``, or by ``"none"``.
    :param bootstrap_value: Whether a branch that the horizon or a time limit cut is credited with the value network's
        estimate of what would have followed. Needed by the baselines that use the value network.
    :param vf_lr_factor: Step size of the value network in multiples of ``learning_rate``, >= 0. Returns are often
        hundreds large; at the policy's own pace the value network would still be far from them when the policy needs
        it. An optimizer that you put in place of the model's has it only for groups of the value network's parameters.
    :param restart_probability: How often, in [0, 1], a group starts a new episode although the last one could go on.
        Early states are then seen more often, late ones less. Episode groups always do.
    :param fill_rollouts: Whether groups from new episodes make up for branches that end early. Otherwise a rollout of
        short episodes holds few steps, and the policy is changed often, on little evidence. A rollout then has about
        ``n_steps``, give or take half a group per environment (or shard), unless eight times the groups hold less.
        They also make up for actions that are illegal with ``"action"``. Episode groups always fill it.
    :param anchor_selection: Where groups start. ``"continue"``: at a random step of a random branch of the last group.
        ``"archive"``: half of them instead from states of earlier rollouts, of which up to 2,048 are kept.
    :param common_random_numbers: Whether the members of a group meet the same noise of the environment, as those that
        share a seeded reset always do. Groups that start from a kept step see the same noise after it. It reaches the
        generators that an environment holds, such as ``self.np_random``: what it draws from those of the process
        (``numpy.random.normal()``, ``random.random()``) stays each branch's own.
    :param antithetic_actions: Whether the branches of a group draw opposite noise, in pairs, so that what both earn
        cancels in the gradient of the mean action. Only for a Box, and networks of SB3's own layers.
    :param filter_zero_std_groups: Whether to leave groups whose members all earned the same out of the policy's loss;
        the entropy bonus and the value network still see them. With rare rewards, scaling would otherwise amplify
        their noise.
    :param clip_range_high: How far the ratio may rise above 1, > 0, if not as far as below (DAPO's clip-higher).
    :param loss_type: ``"clip"``: PPO's surrogate. ``"cispo"``: the clipped ratio weighs the log probability.
    :param importance_level: Probability ratio of each ``"step"``, or of its whole ``"branch"`` (GSPO).
    :param loss_normalization: Every ``"step"`` counts alike, or every ``"branch"``, or steps are summed and divided by
        the constant ``"horizon"`` (Dr. GRPO).
    :param kl_coef: Weight of the KL divergence from the reference policy, >= 0: the one at the start of the last
        ``learn`` that reset the steps.
    :param ref_sync_steps: Simulator steps after which the policy becomes the reference anew; None never.
    :param n_rollout_workers: Processes that play rollouts while ``learn`` runs, each with copies of the environments
        and of the reward functions; 1 for this one alone. With several, callbacks see the steps of a shard once it has
        come back. Where this process is connected to Ray, they are Ray's actors.
    :param n_rollout_shards: Parts that a rollout is cut into, each with random generators of its own: 1, or a multiple
        of the number of environments. The weights depend on it, and not on the number of workers. None: 1 with one
        worker, else about 4, and with whole episodes one per environment.
    :raises ValueError: If an argument is outside its range or does not fit another; the message says how to fix it.

    Where ``grpo_core.fast`` gives the same, rollouts bit for bit and weights up to rounding, it collects rollouts and
    takes the steps of ``train`` several times faster. The class attribute ``use_fast_path`` is its only switch: set
    ``GRPO.use_fast_path = False`` before building a model, and none of it runs. A model keeps what its class said when
    it was built.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict(POLICIES)
    use_fast_path: ClassVar[bool] = True
    # Left by ``collect_rollouts`` for ``train``, beside the ``rollout_buffer``: the steps to learn from, and what each
    # forward pass on them runs in.
    _batch: StepBatch
    _layer_noise: Callable[[], AbstractContextManager[None]] = nullcontext
    # Set with the networks.
    _reads_values_fast: bool

    @explain_unknown_arguments
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 256,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        reward_function: Reward | None = None,
        reward_weights: Sequence[float] | None = None,
        group_mode: GroupMode | Literal["auto"] = "auto",
        group_size: int = 2,
        horizon: int | None = None,
        supervision: Supervision = "process",
        baseline: Baseline = "adaptive",
        advantage_scaling: AdvantageScaling = "batch",
        bootstrap_value: bool = True,
        vf_lr_factor: float = 10.0,
        restart_probability: float = 0.0,
        fill_rollouts: bool = False,
        anchor_selection: AnchorSelection = "continue",
        common_random_numbers: bool = False,
        antithetic_actions: bool = False,
        filter_zero_std_groups: bool = False,
        clip_range_high: float | Schedule | None = None,
        loss_type: LossType = "clip",
        importance_level: ImportanceLevel = "step",
        loss_normalization: LossNormalization = "step",
        kl_coef: float = 0.0,
        ref_sync_steps: int | None = None,
        n_rollout_workers: int = 1,
        n_rollout_shards: int | None = None,
    ) -> None:
        check_arguments(policy_kwargs=policy_kwargs, tensorboard_log=tensorboard_log, verbose=verbose, device=device)
        if isinstance(policy, str) and policy not in self.policy_aliases:
            refuse("policy", policy, f"use one of {', '.join(self.policy_aliases)}, or a class of your own.")
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.target_kl = target_kl
        self.reward_function = reward_function
        self.reward_weights = reward_weights
        self.group_mode = group_mode
        self.group_size = group_size
        self.horizon = horizon
        self.supervision: Supervision = supervision
        self.baseline: Baseline = baseline
        self.advantage_scaling: AdvantageScaling = advantage_scaling
        self.bootstrap_value = bootstrap_value
        self.vf_lr_factor = vf_lr_factor
        self.restart_probability = restart_probability
        self.fill_rollouts = fill_rollouts
        self.anchor_selection = anchor_selection
        self.common_random_numbers = common_random_numbers
        self.antithetic_actions = antithetic_actions
        self.filter_zero_std_groups = filter_zero_std_groups
        self.clip_range_high = clip_range_high
        self.loss_type: LossType = loss_type
        self.importance_level: ImportanceLevel = importance_level
        self.loss_normalization: LossNormalization = loss_normalization
        self.kl_coef = kl_coef
        self.ref_sync_steps = ref_sync_steps
        self.n_rollout_workers = n_rollout_workers
        self.n_rollout_shards = n_rollout_shards
        self._ref_policy: ActorCriticPolicy | None = None
        self._ref_timesteps = 0
        self._group_correlation = GroupCorrelation()
        self._stop_requested = False
        self._uses_fast_path = self.use_fast_path
        if _init_setup_model:
            if env is None:
                check_spaces(env)  # which says what is missing
            self._setup_model()

    def _setup_model(self) -> None:
        check_hyperparameters(self)
        check_observation_space(self.observation_space)
        check_action_space(self.action_space)
        policy_class = self._get_actor_critic_class()
        check_policy_kwargs(self.policy_kwargs, policy_class)
        check_policy_fits(policy_class, self.policy_kwargs, self.observation_space)
        self._maybe_recommend_cpu()
        groups = None if self.env is None else self._choose_groups(self.env)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        with borrow_torch_generator(self.rng, self.device), build_in_float32():
            self.policy = policy_class(
                self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
            )
        check_built_policy(self.policy)
        self.policy = self.policy.to(self.device)
        # The policy and the value network each have their own step size in one optimizer.
        self._parameter_groups = ParameterGroups(self.policy, self.lr_schedule(1))
        self._structure = StructureCheck(self.policy)
        warn_if_too_large(self.policy)
        self._network = network_to_json(self.policy_kwargs, policy_class)
        self._has_own_parts = "own_parts" in self._network
        check_noise(self)
        # Asked only now: the actor's copy of the network stays right, whatever a user changes later.
        self._reads_values_fast = self._uses_fast_path and self._has_known_layers() and fast.is_plain_mlp(self.policy)
        if groups is not None:
            self._use_groups(groups)

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = CheckedSchedule("learning_rate", self.learning_rate)

    def _get_actor_critic_class(self) -> type[ActorCriticPolicy]:
        """Return SB3's class of a policy's name, or the user's own.

        :raises ValueError: If the policy is of another kind.
        """
        name, policy_class = get_policy_name(self.policy_class), self.policy_class
        assert issubclass(policy_class, ActorCriticPolicy), name
        return policy_class

    def _get_batched_collector(self) -> MakeCollector | None:
        return fast.make_batched_collector if self._uses_fast_path else None

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least ``total_timesteps`` simulator steps; every step of every branch counts as one.

        :param total_timesteps: A lower bound: the rollout under way is completed.
        :param callback: SB3 callback(s). ``on_step`` runs once per step of the vectorised environment, as in PPO;
            ``collect_rollouts`` says what is in their ``locals``.
        :param log_interval: Rollouts between two log tables.
        :param tb_log_name: Name of the TensorBoard run.
        :param reset_num_timesteps: Whether to count from 0 and start new episodes.
        :param progress_bar: Show progress with tqdm and rich. SB3's bar counts one step per environment and vectorised
            step, also where the branch has ended.
        :return: The trained model itself.
        :raises ValueError: If there is no environment, if a reward, an observation, the loss or a weight is not finite,
            if the model was loaded without the reward function that it was trained with, or if something cannot be
            sent to rollout workers.
        :raises RuntimeError: If a callback calls it within a rollout, or replaces the environment that rollout workers
            have copies of.
        :raises grpo_core.shards.pool.RolloutWorkersError: If rollout workers keep dying.
        """
        if self._is_collecting:
            raise RuntimeError(
                "learn() is running already; a callback may not call it within a rollout. Let the callback return "
                "False, which ends the training, and call learn() after that."
            )
        self._stop_requested = False  # first: what follows may take seconds, and be stopped
        check_arguments(total_timesteps=total_timesteps, log_interval=log_interval)
        if self.env is None:
            raise ValueError("there is no environment to train in; call set_env(env), or GRPO.load(path, env=env).")
        self._check_lost_reward_function()
        check_hyperparameters(self)
        check_noise(self)
        self._prepare_groups()
        if not reset_num_timesteps:
            self._warn_of_lost_reference()
        warn_of_options(self.env)
        with self._open_workers():
            if reset_num_timesteps:  # last: a run that is refused leaves all as it was
                self._collector.anchors.forget()
                self._ref_policy = None
                self._group_correlation = GroupCorrelation()
                self._logged = ()
            return super().learn(
                total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
            )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: GroupRollout,  # type: ignore[override]  # see ``GroupedAlgorithm``
        n_rollout_steps: int,
    ) -> bool:
        """Collect one rollout of whole groups and compute its advantages.

        Callbacks see ``on_step`` once per *vectorised step*: one step of one branch in each environment at most. Their
        locals are those of SB3's on-policy algorithms, with a row per environment: ``infos``, ``dones``, ``rewards``,
        ``obs_tensor``, ``actions``, ``clipped_actions``, ``new_obs``, ``values``, ``log_probs``, ``n_steps``
        (vectorised steps so far), ``n_rollout_steps``, ``rollout_buffer``. Branches take turns, so the next vectorised
        step need not go on where the last one led, and ``new_obs`` is the last observation where an episode ended, not
        that of a reset. Towards the end of a rollout an environment may have no branch left: its ``step_mask`` (not in
        SB3) and ``done`` are False, its reward is 0, and everything else repeats its last step. ``rewards`` are the
        environment's own; ``obs_tensor`` and ``new_obs`` are normalised where a ``VecNormalize`` is in use.

        :param n_rollout_steps: ``n_steps``; the collector knows it already.
        :return: False if a callback or ``stop`` ended it early.
        """
        self._begin_rollout(callback)
        with self._keeping_groups():
            # Groups branch from their anchor states, and every branch follows the policy.
            self.policy.set_training_mode(False)
            normalizer = Normalizer(self._vec_normalize_env)
            statistics = normalizer.freeze()
            self._actor = self._make_rollout_actor()
            check_noise(self)  # again: a callback may have replaced a layer
            if not self._play_groups(callback, n_rollout_steps):
                return False

            rollout, collector = self.rollout_buffer, self._collector
            # Rewards, in place: the environment's own become those of the reward functions, and are scaled after that.
            self._apply_reward_functions(rollout)
            if self._mode == "episode" and self._n_updates == 0 and self.baseline in COMPARES_IN_GROUPS:
                warn_of_other_starts(rollout)
            observations, next_observations = normalizer.apply(rollout, statistics)
            rollout.check_seen(observations, next_observations)
            discounted_returns = normalizer.compute_discounted_returns(rollout, collector.start_returns)
            normalizer.update(rollout, discounted_returns)  # first, or empty statistics would scale the first rollout
            normalizer.scale_rewards(rollout)

            # Each step's advantage relative to its group, and where the next groups start.
            self._layer_noise = self._make_layer_noise()
            self._batch = self._compute_batch(rollout, observations, next_observations)
            with collector.outside_changes.looking_away():  # anchors may be found by resets
                self._choose_anchors(rollout, discounted_returns)
            callback.on_rollout_end()
            return True

    def _apply_reward_functions(self, rollout: GroupRollout) -> None:
        """Let the reward functions replace the environment's rewards, if there are any, and check the outcome.

        :raises ValueError: If a reward is not finite, or an observation that is not the last of a terminated episode.
        """
        if self.reward_function is not None:
            means = self._collector.apply_reward_functions(
                rollout, self._actor, self.reward_function, self.reward_weights
            )
            for name, mean in means.items():
                self.logger.record(f"rewards/{name}_mean", mean)
        rollout.zero_broken_ends()
        rollout.check_finite()
        self.logger.record("rollout/reward_mean", float(rollout.rewards[rollout.step_mask].mean()))

    def _make_layer_noise(self) -> Callable[[], AbstractContextManager[None]]:
        """Make what each forward pass runs in: layers of the user's own, such as dropout, draw by this model's seed.

        The model's generator stays where it is, so that policies which draw nothing learn the same with it or without.
        """
        if self._is_known_to_numpy():
            return nullcontext
        far_ahead = np.random.Generator(self.rng.bit_generator.jumped())  # type: ignore[attr-defined]  # PCG64 has it
        return partial(borrow_torch_generator, far_ahead, self.device)

    def _compute_batch(
        self, rollout: GroupRollout, observations: Observations, next_observations: Observations
    ) -> StepBatch:
        """Compute advantages relative to the group, and lay out the steps to learn from.

        :param observations: Those of the live steps, as the policy sees them, shape
            ``(n_live_steps, *observation_shape)``.
        :param next_observations: Where the steps led, likewise.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is refused after the update
            values, next_values = self._compute_values(observations), self._compute_values(next_observations)
            groups = self._compute_advantages(rollout, values, next_values)
            rollout.values = rollout.lay_out(values)
            rollout.advantages, rollout.value_targets = groups.advantages, groups.value_targets
            batch = rollout.flatten(observations, *self._compute_weights(rollout, groups))
            # Copied by now: read-only, so that a callback that writes to them gets an error.
            rollout.advantages.flags.writeable = rollout.value_targets.flags.writeable = False
            self.logger.record("rollout/zero_std_group_fraction", groups.zero_std_group_fraction)
            self.logger.record("train/explained_variance", _explain_variance(values, batch.value_targets))
        if self.kl_coef > 0.0:
            ref_policy = self._sync_ref_policy()
            with self._layer_noise():
                batch = batch._replace(ref_log_prob=compute_log_prob(ref_policy, batch))
        return batch

    def _compute_values(self, observations: Observations) -> npt.NDArray[np.float32]:
        """Estimate the values of live steps, ``(n_live_steps,)``.

        :param observations: As the policy sees them, shape ``(n_live_steps, *observation_shape)``.
        """
        if self._reads_values_fast and isinstance(self._actor, Actor):
            return fast.compute_values(self._actor, observations)
        with self._layer_noise():
            return compute_values(self.policy, observations)

    def _compute_advantages(self, rollout: GroupRollout, values: Floats, next_values: Floats) -> GroupAdvantages:
        """Judge every live step relative to its group.

        :param values: Estimated values of the live steps' observations, shape ``(n_live_steps,)``.
        :param next_values: The same for their next observations.
        """
        correlations = self._group_correlation.estimate(len(rollout.step_mask))
        groups = compute_group_advantages(
            rollout.steps,
            rollout.lay_out(values),
            rollout.lay_out(next_values),
            gamma=float(self.gamma),  # maybe a NumPy float, which would turn all arrays into float64
            gae_lambda=self.gae_lambda,
            baseline=self.baseline,
            supervision=self.supervision,
            bootstrap_value=self.bootstrap_value,
            advantage_scaling=self.advantage_scaling,
            correlations=correlations,
        )
        if self.baseline == "adaptive":
            for name, number in describe_adaptive(groups, rollout.step_mask, correlations).items():
                self.logger.record(f"rollout/{name}", number)
            # Only now: what this rollout tells is for those that follow.
            self._group_correlation.update(groups.gae, rollout.step_mask)
        return groups

    def _compute_weights(self, rollout: GroupRollout, groups: GroupAdvantages) -> tuple[Floats, Floats]:
        """Compute how much every step counts in the loss, and would without the filter.

        :return: Two arrays of shape ``(horizon, n_groups, group_size)``; one and the same if nothing is filtered.
        """
        weights = compute_step_weights(rollout.step_mask, self.loss_normalization)
        if self._mode == "action":
            weights[0] *= rollout.first_action_weights
        if not self.filter_zero_std_groups:
            return weights, weights
        factors = compute_filter_weights(groups.informative, rollout.step_mask, self.loss_normalization)
        return weights * factors, weights

    def _sync_ref_policy(self) -> ActorCriticPolicy:
        """Return the reference policy, a copy of the policy that is renewed after every ``ref_sync_steps``."""
        is_due = self.ref_sync_steps is not None and self.num_timesteps >= self._ref_timesteps + self.ref_sync_steps
        if self._ref_policy is None or is_due:
            self._ref_policy, self._ref_timesteps = copy_policy(self.policy), self.num_timesteps
        return self._ref_policy

    def _choose_anchors(self, rollout: GroupRollout, discounted_returns: npt.NDArray[np.float64] | None) -> None:
        """Let the next rollout go on from a random step of a random branch of each group, or from the archive.

        :param discounted_returns: As ``Anchors.choose`` takes them.
        """
        anchors, groups = self._collector.anchors, self._collector.groups
        if anchors.archive is not None:
            self.logger.record("rollout/archive_size", len(anchors.archive))
            self.logger.record("rollout/archive_share", anchors.n_archived / len(groups))
        with suppress(NotBranchableError):  # after a reset: the next rollout makes the groups anew, or meets it again
            anchors.choose(
                rollout,
                groups,
                discounted_returns,
                restart_probability=self.restart_probability,
                rng=self.rng,
                should_stop=lambda: self._stop_requested,
            )

    def train(self) -> None:
        """Take PPO's clipped steps on the rollout just collected, and fit the value network to it.

        ``loss = mean(weights * surrogate) - ent_coef * mean(entropy) + vf_coef * mean((values - value_targets)^2)
        + kl_coef * mean(weights * kl)``, where ``kl`` estimates KL(policy || reference) from the rollout's actions and
        has the gradient of KL(reference || policy).
        """
        networks = self._parameter_groups.follow(self.policy)
        self._update_learning_rate(self.policy.optimizer)
        self._parameter_groups.scale_value_rate(self.policy.optimizer, self.vf_lr_factor)
        clip_range, clip_range_high = self._get_clip_ranges()
        if (learner := self._make_fast_learner(clip_range, clip_range_high)) is not None:
            self._log_update(learner.train(self._draw_minibatches()), clip_range)
            return

        self.policy.set_training_mode(True)
        steps, n_branches = self._batch.to_tensors(self.device), math.prod(self.rollout_buffer.shape[1:])
        lowest_ratio = 0.0 if self.loss_type == "cispo" else 1.0 - clip_range  # CISPO bounds the ratio only above
        measured = list[dict[str, torch.Tensor]]()
        for chosen in self._draw_minibatches():
            batch = steps.select(torch.from_numpy(chosen).to(self.device))
            with self._layer_noise():
                values, log_prob, entropy = evaluate_actions(
                    self.policy, batch.observations, batch.actions, batch.action_masks
                )

            # The policy: how much more likely each action became, times its advantage, clipped.
            log_ratio = log_prob - batch.old_log_prob
            if self.importance_level == "step":
                ratio = log_ratio.exp()
            else:
                ratio = compute_sequence_ratio(log_ratio, batch.branch_index, n_branches)
            if self.loss_type == "clip":
                losses = compute_clipped_surrogate(ratio, batch.advantages, clip_range, clip_range_high)
            else:
                losses = compute_cispo_loss(log_prob, ratio, batch.advantages, clip_range_high)
            policy_loss = (batch.weights * losses).mean()

            # The value network, the entropy bonus, and the distance to the reference policy.
            value_loss = torch.nn.functional.mse_loss(values, batch.value_targets)
            entropy_loss = -entropy.mean()
            loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
            metrics = {"policy_gradient_loss": policy_loss, "value_loss": value_loss, "entropy_loss": entropy_loss}
            if batch.ref_log_prob is not None:
                kl = compute_kl(batch.ref_log_prob - log_prob)
                metrics["kl_ref"] = compute_weighted_mean(kl, batch.unfiltered_weights)
                loss = loss + self.kl_coef * (batch.weights * kl).mean()

            metrics |= measure_move(log_ratio, ratio, batch.unfiltered_weights, lowest_ratio, 1.0 + clip_range_high)
            measured.append({name: metric.detach() for name, metric in {"loss": loss, **metrics}.items()})
            if self.target_kl is not None and metrics["approx_kl"] > TARGET_KL_TOLERANCE * self.target_kl:
                break

            self.policy.optimizer.zero_grad()
            loss.backward()
            if self.ent_coef == 0.0 and not self._batch.weights[chosen].any():  # all groups are filtered out
                forget_zero_gradients(networks[0])
            # Clipped apart: the value network's gradient grows with the rewards and would drown the policy's.
            for parameters in networks:
                torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            self.policy.optimizer.step()
        self._log_update(_compute_means(measured), clip_range)

    def _get_clip_ranges(self) -> tuple[float, float]:
        """Return how far the ratio may now fall below 1, and how far it may rise above it."""
        clip_range = CheckedSchedule("clip_range", self.clip_range)(self._current_progress_remaining)
        if self.clip_range_high is None:
            return clip_range, clip_range
        return clip_range, CheckedSchedule("clip_range_high", self.clip_range_high)(self._current_progress_remaining)

    def _draw_minibatches(self) -> Iterator[Indices]:
        """Yield ``n_epochs`` times all steps of the rollout, ``batch_size`` at a time, unless ``stop`` is called."""
        whole_branches = self.importance_level == "branch"
        for _ in range(self.n_epochs):
            self._n_updates += 1
            for chosen in draw_minibatches(self._batch, self.batch_size, self.rng, whole_branches):
                if self._stop_requested:
                    return
                yield chosen
                if self.after_minibatch is not None:
                    self.after_minibatch()

    def _make_fast_learner(self, clip_range: float, clip_range_high: float) -> fast.MlpLearner | None:
        """Make the learner that takes the steps of ``train`` faster; None where it does not apply."""
        if not self._uses_fast_path or self.importance_level != "step" or self._batch.action_masks is not None:
            return None
        # Asked anew every time: a user may have replaced a layer or the optimizer, frozen a parameter or registered a
        # hook in the meantime.
        if not isinstance(self._actor, Actor) or not self._is_known_to_numpy():
            return None
        if not fast.is_plain_mlp(self.policy) or is_learning_watched(self.policy):
            return None
        rule = fast.UpdateRule(
            clip_range,
            clip_range_high,
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            kl_coef=self.kl_coef,
            max_grad_norm=self.max_grad_norm,
            target_kl=self.target_kl,
            loss_type=self.loss_type,
        )
        return fast.MlpLearner(self.policy, self._actor, self._batch, rule)

    def _log_update(self, means: Mapping[str, float], clip_range: float) -> None:
        """Log an update.

        :param means: Means over its minibatches; empty if it was stopped before the first.
        :raises ValueError: If one is not finite, or a weight.
        """
        if not means:
            return
        if not all(map(math.isfinite, means.values())):
            raise ValueError(f"the loss is not finite ({means}); {self._suggest_for_not_finite()}")
        if (name := find_not_finite(self.policy)) is not None:
            raise ValueError(f"the update left NaN or infinite numbers in {name}; {self._suggest_for_not_finite()}")
        self._is_just_loaded = False
        for name, mean in means.items():
            self.logger.record(f"train/{name}", mean)
        if isinstance(self.action_space, spaces.Box) and hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)

    def _suggest_for_not_finite(self) -> str:
        remedy = "lower learning_rate or the size of the rewards."
        if not self._is_just_loaded:
            return remedy
        began = "the model that training began from (init_model, or the file that was loaded) may be the cause"
        return f"{began}: begin from another one, or {remedy}"

    def stop(self) -> None:
        """Ask a running ``learn`` to return at its next simulator step or minibatch; safe from any thread."""
        self._stop_requested = True

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed this model's generator, its action space and its environments, and nothing process-wide.

        :param seed: None draws fresh entropy for the model and leaves the environments as they are.
        """
        self.rng = np.random.default_rng(seed)
        # Separate, so that asking for actions does not change what is learned.
        self._predict_rng = np.random.default_rng(None if seed is None else [seed, 1])
        if seed is not None:
            seed = int(seed)  # Gymnasium refuses NumPy's
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)


def _explain_variance(values: Floats, value_targets: Floats) -> float:
    """Compute SB3's ``explained_variance``; NaN, as there, where targets do not differ: their rounding does not count.

    :param values: Shape ``(n_live_steps,)``.
    :param value_targets: Sums of rewards and values, same shape.
    """
    largest = max(np.abs(values).max(), np.abs(value_targets).max())
    if value_targets.std() <= ROUNDING * largest:
        return math.nan
    return float(explained_variance(values, value_targets))


def _compute_means(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Average each metric over the minibatches; empty if there was none."""
    names = rows[0] if rows else ()
    return {name: torch.stack([row[name] for row in rows]).mean().item() for name in names}
