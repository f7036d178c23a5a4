"""Make the groups of an environment, play them, and keep both current while users change what they like."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from grpo_core.actor.actor import PolicyActor
from grpo_core.algorithm.saved import SavedAlgorithm
from grpo_core.banks.bank import Findings, SimulatorBank
from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.episode_rows import VecMonitorFeed, find_vec_monitor
from grpo_core.banks.vec_wrappers import read_vec_wrappers
from grpo_core.environments.first_calls import call_reset
from grpo_core.groups.callback_view import CallbackView, VecStep, keep_original_observations
from grpo_core.groups.collector import GroupCollector, VecStepCallback
from grpo_core.groups.group import GroupPlan
from grpo_core.groups.rollout import GroupRollout
from grpo_core.options.checks import check_group_mode, get_horizon
from grpo_core.options.choices import AnchorSelection, GroupMode
from grpo_core.restoring.errors import NotBranchableError, ReplacedLayerError
from grpo_core.saving.model_state import wrap_again, wrap_like
from grpo_core.shards.choose_pool import choose_pool
from grpo_core.shards.pool import RolloutPool
from grpo_core.shards.shard_messages import MakeCollector
from grpo_core.shards.sharded_collector import ShardedCollector, choose_collector, count_shards

# How often a rollout begins anew because a wrapper has exchanged the environment inside it.
_MAX_EXCHANGES = 3


class _Groups(NamedTuple):
    """The parts that play groups in an environment, and the buffer that keeps a rollout of them."""

    mode: GroupMode
    env: VecEnv
    collector: GroupCollector
    rollout: GroupRollout


class GroupedAlgorithm(SavedAlgorithm):
    """The base of ``GRPO`` that plays groups: in which environment, by what collector, and when to make both anew."""

    # Arguments of ``GRPO``.
    group_mode: GroupMode | Literal["auto"]
    group_size: int
    horizon: int | None
    fill_rollouts: bool
    anchor_selection: AnchorSelection
    common_random_numbers: bool
    reward_weights: Sequence[float] | None
    n_rollout_workers: int
    n_rollout_shards: int | None
    #: Called after every minibatch, and while rollout workers play, which SB3's callbacks do not see: a sign of life.
    after_minibatch: Callable[[], None] | None = None
    #: Threads that step the simulators of a rollout, where their physics allows it (MuJoCo's does). None: one per core
    #: that the process may use, but no more than ``torch.get_num_threads()``. Rollouts are the same with any.
    n_simulator_threads: int | None = None
    #: Who plays rollouts in place of ``n_rollout_workers`` processes of this machine, such as a
    #: ``grpo_core.shards.ray_pool.RayPool``; None chooses. It is started and ended by ``learn``.
    rollout_pool: RolloutPool | None = None
    #: Longest time without a step of the environment, in seconds, after which a rollout worker counts as dead, and
    #: another one plays its shard again; ``math.inf`` waits for ever. A ``rollout_pool`` has its own ``stall_seconds``.
    rollout_stall_seconds: float = RolloutPool.stall_seconds
    # Holds the rollout, as the rollout buffer of SB3's algorithms does.
    rollout_buffer: GroupRollout  # type: ignore[assignment]  # ours holds groups; SB3 only hands it through
    # Chooses the actions of the rollout.
    _actor: PolicyActor
    # Set with the environment, which a loaded model may not have yet.
    _mode: GroupMode
    _collector: GroupCollector
    _vec_monitor: VecMonitorFeed | None
    # ``_last_obs`` is read from these: a reset until there is a vectorised step.
    _first_obs: Any = None
    _vec_step: VecStep | None = None
    # The environment that groups are played in: none yet where a model was loaded without any.
    _grouped_env: VecEnv | None = None
    # The parts for an environment that was set in the middle of a rollout.
    _next_groups: _Groups | None = None
    # A checkpoint's figures of the last update, for the logger that ``learn`` makes.
    _logged: Sequence[tuple[str, float, int, tuple[str, ...]]] = ()
    # Whether the groups have to stay what they are, whatever environment a callback may set.
    _is_collecting: bool = False
    # ``num_timesteps`` when the latest rollout began.
    _timesteps_before: int = 0
    # Whether ``stop`` was called.
    _stop_requested: bool

    def _choose_groups(self, env: VecEnv) -> _Groups:
        """Resolve ``group_mode``, and make groups in an environment; all stays as it was until ``_use_groups``.

        :raises ValueError: If the mode does not fit the other arguments or the environment.
        """
        if self.group_mode != "auto":
            check_group_mode(self, self.group_mode)
            return self._make_groups(env, self.group_mode, self._make_bank(env, self.group_mode))
        try:
            bank = self._make_bank(env, "branch", must_pay=True)
        except NotBranchableError as obstacle:
            return self._fall_back_to_episodes(env, obstacle)
        check_group_mode(self, "branch")
        return self._make_groups(env, "branch", bank)

    def _fall_back_to_episodes(self, env: VecEnv, obstacle: NotBranchableError) -> _Groups:
        """Choose whole episodes for ``"auto"``, with a warning that says why groups cannot branch."""
        warnings.warn(
            f"{obstacle} Groups are whole episodes from one seeded reset instead, as with group_mode='episode', "
            "which silences this warning.",
            stacklevel=6,
        )
        bank = self._make_bank(env, "episode")
        check_group_mode(self, "episode")
        return self._make_groups(env, "episode", bank)

    def _make_bank(
        self, env: VecEnv, mode: GroupMode, must_pay: bool = False, findings: Findings | None = None
    ) -> SimulatorBank:
        """Make the simulators behind an environment ready for groups of a mode; ``make_bank`` explains the rest."""
        return make_bank(
            env,
            needs_restore=mode != "episode",
            common_random_numbers=self.common_random_numbers,
            must_pay=must_pay,
            findings=findings,
        )

    def _make_groups(self, env: VecEnv, mode: GroupMode, bank: SimulatorBank) -> _Groups:
        """Make what plays the groups, which begin with new episodes, and the storage of a rollout.

        :raises ValueError: If the environment does not fit the other arguments.
        """
        plan = self._make_plan(mode)
        n_shards = count_shards(self.n_rollout_shards, self.n_rollout_workers, bank.n_envs, plan)
        collector = choose_collector(
            bank,
            env,
            observation_space=self.observation_space,
            action_space=self.action_space,
            plan=plan,
            n_shards=n_shards,
            make_batched=self._get_batched_collector(),
        )
        rollout = GroupRollout.for_plan(plan, bank.n_envs, self.observation_space, self.action_space)
        return _Groups(mode, env, collector, rollout)

    def _get_batched_collector(self) -> MakeCollector | None:
        """Return what makes a collector that steps all branches at once; None never does."""
        return None

    def _make_plan(self, mode: GroupMode) -> GroupPlan:
        return GroupPlan(
            mode=mode,
            group_size=self.group_size,
            horizon=get_horizon(self.horizon, mode),
            n_steps=self.n_steps,
            fill_rollouts=self.fill_rollouts,
            common_random_numbers=self.common_random_numbers,
            anchor_selection=self.anchor_selection,
            antithetic_actions=self.antithetic_actions,
        )

    def _use_groups(self, groups: _Groups) -> None:
        self._mode, self._grouped_env, self._collector, self.rollout_buffer = groups
        self._vec_monitor, self._next_groups = find_vec_monitor(groups.env), None

    def _use_next_groups(self) -> None:
        if self._next_groups is not None:
            self._use_groups(self._next_groups)

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Replace the environment, see ``BaseAlgorithm.set_env``; groups start anew in it.

        A callback that does so in the middle of a rollout replaces it for the next one, unless rollouts are cut
        (``n_rollout_shards``): then it is set between two calls of ``learn``. The first environment of a model that
        was loaded without any is normalised as by ``load``, and a later one as the one before; ``VecNormalize(env,
        norm_obs=False, norm_reward=False)`` is left as it is.

        :raises ValueError: If the environment does not fit the model; then all stays as it was.
        :raises AssertionError: SB3's, if there are more or fewer environments than before.
        """
        vec_env = self._wrap_env(env, self.verbose)
        if self._grouped_env is None and self._loaded is not None:
            vec_env = wrap_like(self._loaded, vec_env)
        before = self._vec_normalize_env if unwrap_vec_normalize(vec_env) is None else None
        if before is not None:
            vec_env = wrap_again(before, vec_env)
        groups = self._choose_groups(vec_env)  # it raises before anything is replaced
        if self._grouped_env is None:
            check_for_correct_spaces(vec_env, self.observation_space, self.action_space)
            self.n_envs = vec_env.num_envs  # the file's number is of no environment
        super().set_env(vec_env, force_reset)
        if self._is_collecting:
            self._next_groups = groups
        else:
            self._use_groups(groups)
        if before is not None and (before.norm_obs or before.norm_reward):  # only now is it true
            warnings.warn(
                "the new environment has no VecNormalize, but the model was trained with one; the environment is "
                "wrapped in one with the same settings and statistics. To go on without, set "
                "VecNormalize(env, norm_obs=False, norm_reward=False).",
                stacklevel=2,
            )

    def _prepare_groups(self) -> None:
        """Make the groups anew if a user has set attributes that they depend on.

        :raises ValueError: If they cannot be made, or if a ``rollout_pool`` would have no shards to play.
        """
        assert self.env is not None, "learn has checked it"
        if self._are_groups_outdated():
            before, self.n_envs = self.n_envs, getattr(self.env, "num_envs", 1)
            try:
                self.set_env(self.env)
            except BaseException:
                self.n_envs = before
                raise
        else:
            check_group_mode(self, self._mode)
        if self.rollout_pool is not None and self._collector.n_shards == 1:
            raise ValueError("rollout_pool would be idle: rollouts are not cut; build the model with n_rollout_shards.")

    def _are_groups_outdated(self) -> bool:
        """Tell whether a user has set attributes: another environment, maybe of another number, or other groups.

        So they are where environments inside the vectorised one were replaced, or where ``"auto"`` would have to choose
        again, since something that cannot be copied was put into one.
        """
        if self.env is not self._grouped_env or self.group_mode not in ("auto", self._mode):
            return True
        if self._collector.is_outdated(tries_capture=self.group_mode == "auto"):
            return True
        assert self.env is not None, "learn has checked it"
        plan = self._make_plan(self._mode)
        n_shards = count_shards(self.n_rollout_shards, self.n_rollout_workers, self.env.num_envs, plan)
        return (plan, n_shards) != (self._collector.plan, self._collector.n_shards)

    @contextmanager
    def _open_workers(self) -> Iterator[None]:
        """Let workers play inside the block, if rollouts are cut; then use an environment that a callback set last."""
        workers: AbstractContextManager[None] = nullcontext()
        if isinstance(self._collector, ShardedCollector):
            pool = self.rollout_pool or choose_pool(self.n_rollout_workers, self.rollout_stall_seconds)
            workers = self._collector.open_workers(self.reward_function, self.reward_weights, pool)
        with workers:
            try:
                yield
            finally:  # an interrupted training may go on from a checkpoint, which has other groups
                self._use_next_groups()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """Begin a run as SB3 does, and say which method is at fault if a first reset returns what it must not."""
        try:
            begun = super()._setup_learn(*args, **kwargs)
        except (TypeError, ValueError, KeyError):
            assert self.env is not None, "learn has checked it"
            for env in getattr(read_vec_wrappers(self.env)[0], "envs", ()):
                call_reset(env)
            raise
        for name, value, count, excluded in self._logged:  # only now is there a logger
            self.logger.record(name, value, excluded)
            self.logger.name_to_count[name] = count
        self._logged = ()
        return begun

    def _begin_rollout(self, callback: BaseCallback) -> None:
        """Begin a rollout in what the environments are now: a user may have replaced them, wrappers or methods."""
        self._timesteps_before = self.num_timesteps
        # Kept: the rollout that holds both is about to be cleared.
        self._first_obs, self._vec_step = self._last_obs, None
        keep_original_observations(self._vec_normalize_env)
        callback.on_rollout_start()
        self._use_next_groups()
        if self.env is not self._grouped_env or (self._collector.n_shards == 1 and self._collector.is_outdated()):
            self._make_groups_anew()

    def _make_groups_anew(self) -> None:
        assert self.env is not None, "learn has checked it"
        self._use_groups(self._choose_groups(self.env))

    @contextmanager
    def _keeping_groups(self) -> Iterator[None]:
        """Keep the groups as they are: what a callback sets in the middle of a rollout holds from the next one on."""
        self._is_collecting = True
        try:
            yield
        finally:
            self._is_collecting = False

    def _play_groups(self, callback: BaseCallback, n_rollout_steps: int) -> bool:
        """Let every branch of every group follow the policy; return False if a callback or ``stop`` ended it early.

        Where a wrapper exchanges the environment inside it on the way, the rollout begins anew. Where wrappers go on
        with that, or where a state can no longer be captured or restored, groups are whole episodes with ``"auto"``.

        :raises NotBranchableError: If that is so with another ``group_mode``, or in rollout workers.
        """
        assert self._grouped_env is not None, "it was set with the groups"
        n_exchanges = 0
        while True:
            collector, rollout = self._collector, self.rollout_buffer
            rollout.buffer_size, rollout.n_envs, rollout.device = self.n_steps, self.n_envs, self.device
            rollout.gamma, rollout.gae_lambda = self.gamma, self.gae_lambda
            collector.n_threads = self.n_simulator_threads
            on_vec_step = self._make_vec_step_callback(rollout, self._grouped_env, callback, n_rollout_steps)
            try:
                collector.follow_outside_changes()
                is_complete = collector.collect(rollout, self._actor, self.rng, on_vec_step, self._should_stop)
            except NotBranchableError as error:
                n_exchanges += 1
                is_exchange = isinstance(error, ReplacedLayerError)
                if collector.n_shards == 1 and is_exchange and n_exchanges <= _MAX_EXCHANGES:
                    self._make_groups_anew()
                elif collector.n_shards == 1 and self.group_mode == "auto":
                    self._use_groups(self._fall_back_to_episodes(self._grouped_env, error))
                else:
                    raise
            except BaseException:  # Ctrl-C too: what our own steps have changed was not set from outside
                collector.outside_changes.look()
                raise
            else:
                collector.outside_changes.look()
                return is_complete

    def _make_vec_step_callback(
        self, rollout: GroupRollout, env: VecEnv, callback: BaseCallback, n_rollout_steps: int
    ) -> VecStepCallback:
        """Make what the collector calls after every vectorised step: it counts the step and shows it to a callback.

        :param rollout: The rollout under way.
        :param n_rollout_steps: As in ``collect_rollouts``.
        """
        entries: dict[str, Any] = {"self": self, "env": env, "callback": callback}
        entries |= {"rollout_buffer": rollout, "n_rollout_steps": n_rollout_steps}
        vec_step = VecStep(rollout, self._actor, self._collector, env.num_envs, self.device)
        view = CallbackView(callback, vec_step, entries, self._vec_normalize_env, self._vec_monitor)

        def on_vec_step(infos: list[dict[str, Any]], dones: Any, rewards: Any, n_stepped: int) -> bool:
            self.num_timesteps += n_stepped
            self._vec_step = vec_step
            if not view.show(infos, dones, rewards, n_stepped) or self._stop_requested:
                return False
            self._update_info_buffer(infos, dones)
            self._last_episode_starts, vec_step.is_over = dones, True
            return True

        return on_vec_step

    def _should_stop(self) -> bool:
        """Tell whether ``stop`` was called; while rollout workers play, no callback is asked."""
        if self.after_minibatch is not None and self._collector.n_shards > 1:
            self.after_minibatch()
        return self._stop_requested

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        """Measure progress where the rollout began: what falls to 0 would else do so before the last update."""
        super()._update_current_progress_remaining(self._timesteps_before, total_timesteps)

    @property
    def _last_obs(self) -> Any:
        return self._first_obs if self._vec_step is None else self._vec_step.last_obs

    @_last_obs.setter
    def _last_obs(self, observations: Any) -> None:
        self._first_obs, self._vec_step = observations, None
