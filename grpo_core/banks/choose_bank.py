"""Choose and make the bank that suits a vectorised environment, or say why its groups cannot branch."""

import warnings
from collections.abc import Sequence

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from grpo_core.banks.bank import Findings, SimulatorBank
from grpo_core.banks.local_bank import LocalBank
from grpo_core.banks.vec_wrappers import read_vec_wrappers
from grpo_core.banks.worker_banks import PlainWorkerBank, RestorableWorkerBank, call_workers
from grpo_core.environments.nested import list_nested_envs
from grpo_core.restoring.errors import FailedTrialError, NotBranchableError
from grpo_core.restoring.proving.report import RestoringReport


def make_bank(
    env: VecEnv,
    *,
    needs_restore: bool,
    common_random_numbers: bool = False,
    must_pay: bool = False,
    findings: Findings | None = None,
) -> SimulatorBank:
    """Make a bank of the environments behind a vectorised environment.

    Environments that are not known to be restored are tried out first, see ``Simulator.prove``. All environments must
    be reset before their first step.

    :param env: A ``DummyVecEnv`` or ``SubprocVecEnv``, in any of ``VecNormalize``, ``VecFrameStack``,
        ``VecTransposeImage``, ``VecMonitor`` and ``VecCheckNan``. With ``needs_restore``, each environment of a
        ``SubprocVecEnv`` needs a ``RestorableWrapper``. ``VecMonitor`` sees none of the steps;
        ``find_vec_monitor`` finds it, to be told of episodes.
    :param needs_restore: Whether states will be captured and restored.
    :param common_random_numbers: Whether states include the environments' random generators, so that all branches of a
        state see the same noise.
    :param must_pay: Whether an environment that takes much longer to restore than to step counts as one that cannot be
        restored.
    :param findings: Findings of another bank of the same environments, wherever it is; None tries them out.
    :raises NotBranchableError: If ``needs_restore`` is set and an environment cannot be restored; the message says why.
    :raises ValueError: If the vectorised environment or one of its wrappers is not supported.
    :raises RuntimeError: If an environment in a worker fails.
    :raises Exception: With ``needs_restore``, the error of an environment in this process whose reset fails.
    """
    base, transform = read_vec_wrappers(env)
    _check_monitors(base)
    bank: SimulatorBank
    if isinstance(base, DummyVecEnv):
        bank = LocalBank(base, transform, needs_restore, common_random_numbers, findings)
    elif not isinstance(base, SubprocVecEnv):
        raise ValueError(
            f"GRPO steps the single environments of a DummyVecEnv or SubprocVecEnv, not of a {type(base).__name__}; "
            "build one of these with make_vec_env(env_id, n_envs, vec_env_cls=...)."
        )
    elif needs_restore:
        bank = RestorableWorkerBank(base, transform, common_random_numbers)
    else:
        bank = PlainWorkerBank(base, transform)
    for report in bank.reports:
        if must_pay and not report.pays:
            raise NotBranchableError(
                f'Restoring {report.env} costs more than it can pay back. {report.price} group_mode="branch" branches '
                "all the same; own methods capture_state() and restore_state(state) may be faster."
            )
    _warn_of_shared(bank.reports)
    return bank


def find_obstacle(env: VecEnv, *, must_pay: bool = False) -> str | None:
    """Return why groups cannot branch in a vectorised environment; None if they can.

    The environments must be reset afterwards.

    :param must_pay: Whether restoring that takes much longer than steps is an obstacle.
    :raises ValueError: If the vectorised environment or one of its wrappers is not supported.
    :raises RuntimeError: If an environment in a worker fails.
    :raises Exception: The error of an environment in this process that fails when it is just reset and stepped.
    """
    try:
        make_bank(env, needs_restore=True, must_pay=must_pay)
    except FailedTrialError as error:
        raise error.__cause__ or error from None
    except NotBranchableError as error:
        return str(error)
    return None


def _check_monitors(base: VecEnv) -> None:
    """Check that no ``Monitor`` refuses the resets that groups need.

    :raises ValueError: If one does.
    """
    allowed: list[bool] = []
    if isinstance(base, DummyVecEnv):
        layers = [layer for env in base.envs for layer in list_nested_envs(env)]
        allowed = [layer.allow_early_resets for layer in layers if isinstance(layer, Monitor)]
    elif isinstance(base, SubprocVecEnv):
        name = ("allow_early_resets",)
        replies = call_workers(base, {i: [("has_wrapper_attr", name, {})] for i in range(base.num_envs)})
        monitored = [i for i, (has_monitor,) in replies.items() if has_monitor]
        replies = call_workers(base, {i: [("get_wrapper_attr", name, {})] for i in monitored})
        allowed = [is_allowed for (is_allowed,) in replies.values()]
    if not all(allowed):
        raise ValueError(
            "Monitor(env, allow_early_resets=False) refuses resets before the end of an episode, and groups begin new "
            "episodes in the middle of others; take Monitor(env), whose allow_early_resets is True."
        )


def _warn_of_shared(reports: Sequence[RestoringReport]) -> None:
    """Warn of an object that several environments hold, and change."""
    path = next((path for report in reports for path in report.shared), None)
    if path is not None:
        warnings.warn(
            f"{path} is held by several environments, and their resets or steps change it. A restore of one must not "
            "put the others back, so each goes on with a copy of its own, and what you hold stays behind. Give each "
            'environment an object of its own, keep it in a module, or use group_mode="episode", which restores '
            "nothing.",
            stacklevel=3,
        )
