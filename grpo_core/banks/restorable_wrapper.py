"""Make an environment in a worker process restorable from outside."""

import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import gymnasium as gym

from grpo_core.banks.single_env import Order, SingleEnv
from grpo_core.environments.first_calls import check_methods
from grpo_core.restoring.errors import FailedResetError, FailedTrialError, NotBranchableError, ReplacedLayerError
from grpo_core.restoring.outside_changes import OutsideChanges
from grpo_core.restoring.proving.proof import Shipment
from grpo_core.restoring.proving.report import RestoringReport
from grpo_core.restoring.simulator import Simulator, SimulatorState

_T = TypeVar("_T")
_Given = ParamSpec("_Given")


class Failure(NamedTuple):
    """An error of an environment in a worker.

    :param traceback: The traceback as text.
    :param obstacle: The error itself where training can go on from it.
    """

    traceback: str
    obstacle: NotBranchableError | None = None

    @classmethod
    def of_current_error(cls) -> "Failure":
        """Describe the error that is being handled."""
        error = sys.exception()
        return cls(traceback.format_exc(), error if isinstance(error, NotBranchableError) else None)


def _return_errors(method: Callable[_Given, _T]) -> Callable[_Given, _T | Failure]:
    """Let a method that the parent process calls return every error: a worker that raises dies without a message."""

    @wraps(method)
    def call(*args: _Given.args, **kwargs: _Given.kwargs) -> _T | Failure:
        try:
            return method(*args, **kwargs)
        except Exception:  # foreign code, whose error the parent process raises
            return Failure.of_current_error()

    return call


class RestorableWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Makes an environment in a ``SubprocVecEnv`` worker restorable, so that groups can branch in it.

    It must be the outermost wrapper, as in ``make_vec_env(env_id, n_envs, vec_env_cls=SubprocVecEnv,
    wrapper_class=RestorableWrapper)``. A ``DummyVecEnv`` does not need it.

    :param env: Any environment with its wrappers. Training checks whether it can be restored.
    """

    _is_built = False

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._simulators: dict[bool, Simulator] = {}
        self._single_envs: dict[bool, SingleEnv] = {}
        self._rewound: tuple[str, ...] = ()
        self._outside_changes = OutsideChanges(())
        # Which of the single environments played last.
        self._player: SingleEnv | None = None
        self._is_built = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Hand what is set on the environment, as SB3's ``set_attr`` does, on to the layer that has such an attribute.

        Training plays what is inside this wrapper, and would never see it here. What no layer has yet is for the
        environment itself, or for a subclass of this wrapper that sets it.
        """
        if not self._is_built or name in vars(self) or hasattr(type(self), name):
            super().__setattr__(name, value)
        elif not self.env.set_wrapper_attr(name, value, force=False):
            if type(self) is RestorableWrapper:
                setattr(self.unwrapped, name, value)
            else:
                super().__setattr__(name, value)

    def capture_state(self) -> SimulatorState:
        """Copy the state of the environment and all its wrappers."""
        return self._get_simulator(False).capture()

    def restore_state(self, state: SimulatorState) -> None:
        """Put the environment and all its wrappers back into a captured state."""
        self._get_simulator(False).restore(state)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment for other code: training calls ``take_reset``."""
        return self._outside_changes.notice(partial(self._leave_and_call, False, partial(self.env.reset, **kwargs)))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment for other code: training calls ``take_order``."""
        return self._outside_changes.notice(partial(self._leave_and_call, True, partial(self.env.step, action)))

    def _leave_and_call(self, is_to_step: bool, call: Callable[[], _T]) -> _T:
        if self._player is not None:
            self._player.leave(is_to_step)
        return call()

    @_return_errors
    def prove_restoring(self, common_random_numbers: bool) -> RestoringReport | str | Failure | None:
        """Try out the environment, with its states sent as bytes as in training.

        :return: What was found out, None if nothing had to be; or why it cannot be restored.
        """
        try:
            self._forget_replaced_layers()
            # These bytes never leave the process.
            report = self._get_simulator(common_random_numbers).prove(shipment=Shipment(pickle.dumps, pickle.loads))
        except FailedTrialError as error:
            return self._explain(error)
        except NotBranchableError as error:
            return str(error)
        self._rewound = () if report is None else report.rewound
        return report

    def _forget_replaced_layers(self) -> None:
        """Begin anew if a wrapper holds another environment by now, whatever model played before."""
        try:
            for simulator in self._simulators.values():
                simulator.check_layers()
        except ReplacedLayerError:
            self._simulators, self._single_envs, self._player = {}, {}, None

    def _explain(self, problem: FailedTrialError) -> str | Failure:
        """Say what is wrong with an environment that failed a trial.

        :raises InvalidEnvironmentError: If that is what a method returned.
        """
        check_methods(self.env)
        if isinstance(problem, FailedResetError) and problem.__cause__ is not None:
            return Failure("".join(traceback.format_exception(problem.__cause__)))
        return str(problem)

    @_return_errors
    def take_reset(self, seed: int | None, common_random_numbers: bool) -> Any:
        """Reset and capture in one round trip."""
        single_env = self._get_single_env(common_random_numbers)
        with self._outside_changes.looking_away():
            observed, state = single_env.reset(seed)
        return observed, pickle.dumps(state)

    @_return_errors
    def take_order(self, order: Order, common_random_numbers: bool) -> Any:
        """Restore, step and capture in one round trip.

        States are sent as bytes, since only the worker reads their content.
        """
        if order.restore is not None:
            state = pickle.loads(order.restore)  # this worker made the bytes itself; they never touch a disk
            order = order._replace(restore=state)
        single_env = self._get_single_env(common_random_numbers)
        with self._outside_changes.looking_away():
            outcome = single_env.step(order)
        return outcome if outcome.state is None else outcome._replace(state=pickle.dumps(outcome.state))

    @_return_errors
    def try_call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the environment."""
        return self.get_wrapper_attr(name)(*arguments, **options)

    @_return_errors
    def has_outside_changes(self) -> bool:
        """Return whether anything was set on the environment from outside."""
        self._outside_changes.keep()
        return self._outside_changes.has_changes()

    @_return_errors
    def renew_states(self, states: Sequence[bytes], common_random_numbers: bool) -> list[bytes]:
        """Set what was set from outside in states that were captured before, and in the environment."""
        simulator = self._get_simulator(common_random_numbers)
        # This worker made the bytes itself; they never touch a disk.
        renewed = [self._outside_changes.renew(simulator, pickle.loads(state)) for state in states]
        self._outside_changes.put()
        self._outside_changes.clear()
        return [pickle.dumps(state) for state in renewed]

    def _get_single_env(self, common_random_numbers: bool) -> SingleEnv:
        if not self._single_envs:
            self._outside_changes = OutsideChanges([self.env])
        if common_random_numbers not in self._single_envs:
            simulator = self._get_simulator(common_random_numbers)
            single_env = self._single_envs[common_random_numbers] = SingleEnv(self.env, simulator, self._rewound)
            single_env.after_restore = self._outside_changes.put_again
        self._player = self._single_envs[common_random_numbers]
        return self._player

    def _get_simulator(self, common_random_numbers: bool) -> Simulator:
        if common_random_numbers not in self._simulators:
            self._simulators[common_random_numbers] = Simulator(self.env, common_random_numbers)
        return self._simulators[common_random_numbers]
