"""What the registry of sweeps asks of a server before a sweep goes on."""

from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import ConflictError, InvalidRequestError
from service.sweeps.registry import SweepRegistry
from tests.service.sweeps.test_sweep import make_sweep


@pytest.mark.parametrize("n_begun", [0, 1, 2])
def test_a_model_that_is_gone_is_missed_by_those_who_have_yet_to_begin_from_it(n_begun: int) -> None:
    sweep = make_sweep(10_000)
    rates = [0.001, 0.002]  # drawn numbers, which alone are no reason to plan a setting
    sweep.record.settings, sweep.record.init_sha256 = [{"learning_rate": rate} for rate in rates], {"base": "a" * 64}
    sweep.record.request = {"base": {"init_model": "base"}, "space": {"learning_rate": rates}}
    trials = sweep.record.trials

    def plan(request: Any, client: str | None, init_sha256: str | None) -> Any:
        if request.init_model is not None:
            raise InvalidRequestError("init_model 'base' was deleted.")
        return SimpleNamespace(config="a plan")

    registry = object.__new__(SweepRegistry)
    registry._admission = SimpleNamespace(plan=plan)  # type: ignore[assignment]
    registry._has_checkpoint = lambda trial: trial in trials[:n_begun]  # type: ignore[method-assign]
    left = {1: [trials[0]], 2: [trials[1]]}
    if n_begun < 2:
        with pytest.raises(ConflictError, match="init_model 'base' was deleted"):
            registry._check_can_train(sweep.record, left, may_promote=False)
    else:
        registry._check_can_train(sweep.record, left, may_promote=False)
        with pytest.raises(ConflictError, match="init_model 'base' was deleted"):
            registry._check_can_train(sweep.record, left, may_promote=True)
