"""GRPO for Stable-Baselines3: group relative policy optimisation with groups that branch from one simulator state."""

import threading
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv

from grpo_core import model_file
from grpo_core.actor import Actor, count_inputs, count_outputs
from grpo_core.advantage import (
    AdvantageScaling,
    Baseline,
    compute_approx_kl,
    compute_clipped_surrogate,
    compute_group_advantages,
)
from grpo_core.branching import Simulator, check_branchable, make_simulators
from grpo_core.hyperparameters import (
    SAVED_HYPERPARAMETERS,
    check_hyperparameters,
    check_policy_kwargs,
    hyperparameters_from_json,
    network_from_json,
)
from grpo_core.model_state import (
    ModelPath,
    describe_model,
    get_optimizer_state,
    get_weights,
    read_model,
    to_parameters,
    write_model,
)
from grpo_core.rewards import REWARD_FUNCTIONS, RewardFunction
from grpo_core.rollout import AnchorState, GroupRollout, Normalizer, StepBatch, draw_minibatches, reset_to_anchor

__all__ = ["GRPO", "check_branchable"]
__version__ = "1.0.0"

# torch initialises layers from one process-wide generator. It is borrowed, seeded and put back while a policy is
# built, under this lock, so that models built in other threads neither see nor disturb each other's seed.
_TORCH_GENERATOR_LOCK = threading.Lock()
# A forward pass over a whole rollout at once would hold every layer's output for all of its steps.
_MAX_FORWARD_STEPS = 8192


class GRPO(OnPolicyAlgorithm):
    """Group Relative Policy Optimization on a Gymnasium task.

    From each *anchor state* a *group* of ``group_size`` *branches* follows the current policy for at most
    ``horizon`` simulator steps. A step's advantage is how much better its branch did from there than its group did
    on average (paper: https://arxiv.org/abs/2402.03300, here with groups that share a simulator state instead of a
    prompt). ``baseline="group"`` needs no value network for that; the default, ``"residual"``, lets one judge what
    follows a branch. The policy then takes PPO's clipped step (https://arxiv.org/abs/1707.06347), and the next
    anchor is a random step of a random branch.

    :param policy: ``"MlpPolicy"``, or the ``ActorCriticPolicy`` it stands for.
    :param env: A Gymnasium id, environment, ``DummyVecEnv`` or ``VecNormalize`` around one. Its simulators must be
        restorable: classic control, toy text, or with ``capture_state``/``restore_state`` methods of their own.
    :param learning_rate: Step size of Adam; a float or a function of the remaining progress (from 1 to 0).
    :param n_steps: Most simulator steps per environment and rollout; a multiple of ``group_size * horizon``. The
        rollout holds ``n_envs * n_steps / (group_size * horizon)`` groups, and fewer steps where branches end early.
    :param batch_size: Live steps per minibatch.
    :param n_epochs: Passes over each rollout.
    :param gamma: Discount factor in [0, 1].
    :param gae_lambda: Bias-variance trade-off in [0, 1] of the lambda-returns, where values are bootstrapped.
    :param clip_range: Trust interval of the probability ratio; a float or a function of the remaining progress.
    :param ent_coef: Weight of the entropy bonus.
    :param vf_coef: Weight of the value network's squared error. Its gradient is clipped apart from the policy's.
    :param max_grad_norm: Largest gradient norm, for the policy and for the value network each.
    :param target_kl: Skip the remaining updates of a rollout once the approximate KL exceeds 1.5 times this.
    :param stats_window_size: Episodes averaged in ``rollout/ep_rew_mean``.
    :param tensorboard_log: Folder for TensorBoard files; None writes none.
    :param policy_kwargs: ``net_arch``, ``activation_fn``, ``ortho_init`` and ``log_std_init``, as SB3 takes them.
    :param verbose: 0 silent, 1 tables, 2 debugging.
    :param seed: Seed of this model's own generators and of the environments; None draws a fresh one. No
        process-wide generator is seeded, so models in several threads stay reproducible.
    :param device: ``"auto"`` takes CUDA if present, else the CPU.
    :param _init_setup_model: Whether to build the networks at once.
    :param reward_function: Maps ``state (B, n)``, ``action (B, m)``, ``next_state (B, n)`` to rewards ``(B, 1)``, as
        tensors; None takes the environment's own reward. ``rollout/ep_rew_mean`` always reports the latter.
    :param group_size: Branches per anchor state, at least 2.
    :param horizon: Most simulator steps per branch.
    :param baseline: ``"group"``: return minus the group's mean, plain GRPO. ``"residual"``: GAE minus the group's
        mean GAE. ``"value"``: GAE alone, PPO's advantage on branches.
    :param advantage_scaling: Divide advantages by the standard deviation of the ``"group"``, of the whole
        ``"batch"``, or by ``"none"``.
    :param bootstrap_value: Whether a branch that the horizon or a time limit cut is credited with the value network's
        estimate of what would have followed. Needed by the baselines that use the value network.
    :param vf_lr_factor: Step size of the value network in multiples of ``learning_rate``. Returns are often hundreds
        large; at the policy's own pace the value network would still be far from them when the policy needs it.
    :raises ValueError: If an argument is outside its range or does not fit another; the message says how to mend it.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ActorCriticPolicy}
    rollout_buffer: GroupRollout  # type: ignore[assignment]  # ours holds groups; SB3 only hands it through

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
        reward_function: RewardFunction | None = None,
        group_size: int = 2,
        horizon: int = 32,
        baseline: Baseline = "residual",
        advantage_scaling: AdvantageScaling = "batch",
        bootstrap_value: bool = True,
        vf_lr_factor: float = 10.0,
    ) -> None:
        check_policy_kwargs(policy_kwargs or {})
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
        self.group_size = group_size
        self.horizon = horizon
        self.baseline: Baseline = baseline
        self.advantage_scaling: AdvantageScaling = advantage_scaling
        self.bootstrap_value = bootstrap_value
        self.vf_lr_factor = vf_lr_factor
        self._anchors: list[AnchorState] = []
        self._simulators: list[Simulator] = []
        self._stop_requested = False
        self._lost_reward_function: str | None = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_hyperparameters(self)
        if self.policy_class is not ActorCriticPolicy:
            raise ValueError(
                f"policy={self.policy_class.__name__} is not supported: rollouts and model files know the layers of "
                "'MlpPolicy' only. Shape it with policy_kwargs."
            )
        for space, count in ((self.observation_space, count_inputs), (self.action_space, count_outputs)):
            count(space)  # raises on a space we cannot take
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        with _TORCH_GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(self.rng.integers(2**63)))
            self.policy = self.policy_class(
                self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
            )
        self.policy = self.policy.to(self.device)
        self._setup_optimizer()
        if self.env is not None:
            self._setup_groups(self.env)

    def _setup_optimizer(self) -> None:
        """Let the policy and the value network each have their own step size in one optimizer."""
        value_modules = (self.policy.mlp_extractor.value_net, self.policy.value_net)
        self._value_parameters = [p for module in value_modules for p in module.parameters()]
        in_value_network = {id(p) for p in self._value_parameters}
        self._policy_parameters = [p for p in self.policy.parameters() if id(p) not in in_value_network]
        self.policy.optimizer = self.policy.optimizer_class(
            [{"params": self._policy_parameters}, {"params": self._value_parameters}],
            lr=self.lr_schedule(1),  # type: ignore[call-arg]  # every optimizer takes it, its base class does not
            **self.policy.optimizer_kwargs,
        )

    def _setup_groups(self, env: VecEnv) -> None:
        """Take hold of the simulators and lay out the storage of a rollout."""
        self._simulators = make_simulators(env)
        self._anchors = []
        n_anchors = env.num_envs * self.n_steps // (self.group_size * self.horizon)
        self.rollout_buffer = GroupRollout(
            self.horizon, n_anchors, self.group_size, self.observation_space, self.action_space
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed this model's generator, its action space and its environments, and nothing process-wide.

        :param seed: None draws fresh entropy for the model and leaves the environments as they are.
        """
        self.rng = np.random.default_rng(seed)
        # Of its own, so that asking for actions does not change what is learnt.
        self._predict_rng = np.random.default_rng(None if seed is None else [seed, 1])
        if seed is not None:
            self.action_space.seed(seed)
            if self.env is not None:
                self.env.seed(seed)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Replace the environment, see ``BaseAlgorithm.set_env``; groups start anew in it."""
        env = self._wrap_env(env, self.verbose)
        make_simulators(env)  # raises before anything is replaced
        super().set_env(env, force_reset)
        assert self.env is not None
        self._setup_groups(self.env)

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
        :param callback: SB3 callback(s). ``on_step`` runs once per sweep over the environments, like in PPO.
        :param log_interval: Rollouts between two log tables.
        :param tb_log_name: Name of the TensorBoard run.
        :param reset_num_timesteps: Whether to count from 0 and start new episodes.
        :param progress_bar: Show progress with tqdm and rich. SB3's bar counts one step per environment and sweep, also
            where the branch has ended.
        :return: The trained model itself.
        :raises ValueError: If there is no environment, if a reward, an observation or the loss is not finite, or if
            the model was loaded without the reward function that it was trained with.
        """
        if self.env is None:
            raise ValueError("there is no environment to train in; call set_env(env), or GRPO.load(path, env=env).")
        if self._lost_reward_function is not None and self.reward_function is None:
            raise ValueError(
                f"this model was trained with reward_function '{self._lost_reward_function}', which a model file "
                "does not hold; pass it to GRPO.load(path, env=env, reward_function=...) or set "
                "model.reward_function before learn()."
            )
        self._stop_requested = False
        if reset_num_timesteps:
            self._anchors = []
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """Keep the progress at 0 when the last rollout goes beyond the total, where schedules would turn negative."""
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        self._current_progress_remaining = max(0.0, self._current_progress_remaining)

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Choose actions, see ``BaseAlgorithm.predict``; on the CPU, draws come from a generator of the model's own."""
        if deterministic:
            return super().predict(observation, state, episode_start, deterministic)
        with _TORCH_GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(self._predict_rng.integers(2**63)))
            return super().predict(observation, state, episode_start, deterministic)

    def stop(self) -> None:
        """Ask a running ``learn`` to return at its next simulator step or minibatch; safe from any thread."""
        self._stop_requested = True

    def make_actor(self) -> Actor:
        """Copy the policy and its value network as they are now into a frozen ``Actor``."""
        return Actor.from_weights(
            self.observation_space, self.action_space, self.policy.activation_fn.__name__, get_weights(self.policy)
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: GroupRollout,  # type: ignore[override]  # see the class attribute
        n_rollout_steps: int,
    ) -> bool:
        """Collect one rollout of whole groups and compute its advantages.

        :param n_rollout_steps: ``n_steps``; the storage is laid out for it already.
        :return: False if a callback or ``stop`` ended it early.
        """
        self.policy.set_training_mode(False)
        rollout, normalizer = rollout_buffer, Normalizer(self._vec_normalize_env)
        callback.on_rollout_start()

        def on_sweep(infos: list[dict[str, Any]], dones: Any, rewards: Any, n_live: int) -> bool:
            self.num_timesteps += n_live
            callback.update_locals({"self": self, "env": env, "infos": infos, "dones": dones, "rewards": rewards})
            if not callback.on_step() or self._stop_requested:
                return False
            self._update_info_buffer(infos, dones)
            return True

        # 1. Branches follow the policy from their anchor states.
        if not self._anchors:
            anchors = []
            for i in range(rollout.shape[1]):
                if self._stop_requested:
                    return False
                anchors.append(reset_to_anchor(self._simulators[i % env.num_envs]))
            self._anchors = anchors
        if not rollout.collect(self._simulators, self._anchors, self.make_actor(), normalizer, self.rng, on_sweep):
            return False

        # 2. Rewards.
        if self.reward_function is not None:
            rollout.apply_reward_function(self.reward_function)
        rollout.check_finite()
        self.logger.record("rollout/reward_mean", float(rollout.rewards[rollout.step_mask].mean()))
        observations = self._to_policy_input(normalizer.normalize(rollout.states[rollout.step_mask]))
        next_observations = self._to_policy_input(normalizer.normalize(rollout.next_states[rollout.step_mask]))
        discounted_returns = normalizer.normalize_rewards(rollout, self._anchors)

        # 3. Advantages relative to the group.
        self._batch = self._compute_advantages(rollout, observations, next_observations)

        # 4. The next rollout continues from a random step of a random branch of each group.
        self._anchors = rollout.next_anchors(self._simulators, discounted_returns)
        callback.on_rollout_end()
        return True

    def _compute_advantages(
        self, rollout: GroupRollout, observations: torch.Tensor, next_observations: torch.Tensor
    ) -> StepBatch:
        """Judge every live step relative to its group.

        :param observations: What the policy saw at the live steps, shape ``(n_steps, *observation_shape)``.
        :param next_observations: Where those steps led, same shape.
        """
        values = self._compute_values(rollout, observations)
        groups = compute_group_advantages(
            rollout.steps,
            values,
            self._compute_values(rollout, next_observations),
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            baseline=self.baseline,
            bootstrap_value=self.bootstrap_value,
            scaling=self.advantage_scaling,
        )
        rollout.advantages, rollout.returns = groups.advantages, groups.returns
        mask = rollout.step_mask
        self.logger.record("rollout/zero_std_group_fraction", groups.zero_std_group_fraction)
        self.logger.record(
            "train/explained_variance", explained_variance(values.numpy()[mask], groups.returns.numpy()[mask])
        )
        return rollout.flatten(observations, self.device)

    def train(self) -> None:
        """Take the clipped policy step, and fit the value network, on the rollout just collected."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        self.policy.optimizer.param_groups[1]["lr"] *= self.vf_lr_factor
        clip_range = FloatSchedule(self.clip_range)(self._current_progress_remaining)
        measured: list[tuple[torch.Tensor, ...]] = []
        for _ in range(self.n_epochs):
            self._n_updates += 1
            if not self._train_epoch(clip_range, measured):
                break
        if not measured:  # stopped before the first minibatch
            return
        names = ("loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "entropy_loss")
        means = torch.tensor([[x.item() for x in row] for row in measured]).mean(dim=0)
        if not torch.isfinite(means).all():
            raise ValueError(
                f"the loss is not finite ({dict(zip(names, means.tolist(), strict=True))}); "
                "lower learning_rate or the size of the rewards."
            )
        for name, mean in zip(names, means.tolist(), strict=True):
            self.logger.record(f"train/{name}", mean)
        if isinstance(self.action_space, spaces.Box):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)

    def _train_epoch(self, clip_range: float, measured: list[tuple[torch.Tensor, ...]]) -> bool:
        """Pass over the rollout once; return False if ``stop`` or ``target_kl`` ends the update here."""
        for minibatch in draw_minibatches(self._batch, self.batch_size, self.rng):
            if self._stop_requested:
                return False
            measured.append(self._update(minibatch, clip_range))
            approx_kl = measured[-1][3]
            if self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
                return False
        return True

    def _update(self, minibatch: StepBatch, clip_range: float) -> tuple[torch.Tensor, ...]:
        """Take one optimizer step, unless ``target_kl`` forbids it.

        :return: Loss, policy loss, value loss, approximate KL, clipped share and negative entropy, as scalars.
        """
        values, log_prob, entropy = self.policy.evaluate_actions(minibatch.observations, minibatch.actions)
        assert entropy is not None  # categorical and Gaussian policies have one in closed form
        log_ratio = log_prob - minibatch.old_log_prob
        ratio = log_ratio.exp()
        policy_loss = compute_clipped_surrogate(ratio, minibatch.advantages, clip_range)
        value_loss = torch.nn.functional.mse_loss(values.flatten(), minibatch.returns)
        entropy_loss = -entropy.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        with torch.no_grad():
            approx_kl = compute_approx_kl(log_ratio)
            clip_fraction = ((ratio - 1.0).abs() > clip_range).float().mean()
        if self.target_kl is None or approx_kl <= 1.5 * self.target_kl:
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            # Clipped apart: the value network's gradient grows with the rewards and would drown the policy's.
            torch.nn.utils.clip_grad_norm_(self._policy_parameters, self.max_grad_norm)
            torch.nn.utils.clip_grad_norm_(self._value_parameters, self.max_grad_norm)
            self.policy.optimizer.step()
        return tuple(x.detach() for x in (loss, policy_loss, value_loss, approx_kl, clip_fraction, entropy_loss))

    def _to_policy_input(self, observations: Any) -> torch.Tensor:
        return torch.as_tensor(observations, device=self.device)

    def _compute_values(self, rollout: GroupRollout, observations: torch.Tensor) -> torch.Tensor:
        """Estimate the value of each live step's observation; ``(horizon, n_anchors, group_size)``, 0 elsewhere."""
        values = torch.zeros(rollout.shape)
        starts = range(0, len(observations), _MAX_FORWARD_STEPS)
        with torch.no_grad():
            chunks = [self.policy.predict_values(observations[i : i + _MAX_FORWARD_STEPS]) for i in starts]
        values[torch.from_numpy(rollout.step_mask)] = torch.cat(chunks).flatten().cpu()
        return values

    def save(
        self,
        path: ModelPath,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save the model in one zip of JSON and plain arrays; a file of that name is replaced atomically.

        The reward function itself is not saved, only its name. Nor are the statistics of a ``VecNormalize``: as for
        every SB3 model, save those with ``env.save``.

        :param path: Where to; ``.zip`` is appended to a name without a suffix. Or an open binary file.
        :param exclude: Not supported, see ``include``.
        :param include: Not supported: the file's content is fixed, because it is never unpickled.
        :raises ValueError: If ``exclude`` or ``include`` is given.
        """
        if exclude is not None or include is not None:
            raise ValueError("exclude and include are not supported: a GRPO model file has a fixed content.")
        write_model(path, self.to_bytes())

    def to_bytes(self, **provenance: Any) -> bytes:
        """Return the content of the model file.

        :param provenance: JSON-serialisable facts to keep in the metadata, such as the environment's id.
        """
        meta = {**describe_model(self, __version__), **provenance}
        return model_file.to_bytes(meta, get_weights(self.policy), get_optimizer_state(self.policy.optimizer))

    @classmethod
    def load(
        cls,
        path: ModelPath,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a model without unpickling anything. It needs neither the environment nor the reward function.

        :param path: File name, with or without ``.zip``, or an open binary file.
        :param env: Environment to go on training in; its spaces must be those of the model.
        :param custom_objects: Same as ``kwargs``, under SB3's name.
        :param print_system_info: Print the versions that the model was saved with.
        :param force_reset: Start new episodes; groups always do after loading.
        :param kwargs: Arguments of ``GRPO`` to change, such as ``reward_function`` or ``learning_rate``.
        :raises grpo_core.model_file.ModelFileError: If the file is damaged or was not saved by GRPO.
        :raises ValueError: If the environment's spaces differ, or an argument is unknown or out of range.
        """
        content = read_model(path)
        meta, changes = content.meta, {**(custom_objects or {}), **kwargs}
        if unknown := set(changes) - {*SAVED_HYPERPARAMETERS, "reward_function"}:
            raise ValueError(f"{sorted(unknown)} cannot be changed on load; only hyperparameters and reward_function.")
        if print_system_info:
            print("Saved with", meta["versions"])  # noqa: T201  # what the argument asks for
        arguments = hyperparameters_from_json(meta["hyperparameters"])
        arguments["reward_function"] = REWARD_FUNCTIONS.get(meta["reward_function"])
        model = cls(
            "MlpPolicy",
            None,  # type: ignore[arg-type]  # spaces come from the file
            policy_kwargs=network_from_json(meta["network"]),
            stats_window_size=meta["stats_window_size"],
            device=device,
            _init_setup_model=False,
            **{**arguments, **changes},
        )
        model.observation_space, model.action_space = content.observation_space, content.action_space
        model.n_envs = meta["n_envs"]
        if env is not None:
            env = cls._wrap_env(env, model.verbose)
            model.n_envs = env.num_envs
        model._setup_model()
        if env is not None:
            model.set_env(env, force_reset=force_reset)
            if model.seed is not None:  # else SB3 would draw one from NumPy's process-wide generator
                env.seed(model.seed)
        model._load_arrays(content)
        model.num_timesteps, model._n_updates = meta["num_timesteps"], meta["n_updates"]
        if "seed" not in changes:
            model.rng.bit_generator.state = meta["rng_state"]
        if model.reward_function is None and "reward_function" not in changes:
            model._lost_reward_function = meta["reward_function"]
        return model

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Load parameters in place, from a GRPO model file or from ``get_parameters``; see SB3's own."""
        if isinstance(load_path_or_dict, dict):
            super().set_parameters(load_path_or_dict, exact_match, device)
        else:
            self._load_arrays(read_model(load_path_or_dict))

    def _load_arrays(self, content: model_file.ModelContent) -> None:
        parameters = to_parameters(content, self.policy.optimizer)
        super().set_parameters(parameters)  # type: ignore[arg-type]  # SB3 types an optimizer's state as a tensor
