"""A misspelt argument of GRPO is answered with the one that was meant."""

import inspect
from typing import Any

import pytest

from grpo import GRPO
from grpo_core.options.unknown_arguments import explain_unknown_arguments


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group_sise": 4}, "GRPO has no argument 'group_sise'; did you mean 'group_size'?"),
        ({"Gamma": 0.9}, "GRPO has no argument 'Gamma'; did you mean 'gamma'?"),
        (
            {"n_envs": 4},
            "GRPO has no argument 'n_envs'; pass the environments as env: make_vec_env(env_id, n_envs=4), of "
            "stable_baselines3.common.env_util.",
        ),
        ({"xyz": 1}, "GRPO has no argument 'xyz'; help(GRPO) lists those that it has."),
        # Close to clip_range, and something else.
        ({"clip_range_vf": 0.2}, "GRPO has no argument 'clip_range_vf', which PPO has; leave it out."),
        (
            {"n_step": 32, "gamma": 0.9, "horison": 16},
            "GRPO has no argument 'n_step'; did you mean 'n_steps'? "
            "GRPO has no argument 'horison'; did you mean 'horizon'?",
        ),
    ],
)
def test_an_unknown_argument_is_answered_with_the_closest_one(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError) as refused:
        GRPO("MlpPolicy", "CartPole-v1", **given)
    assert str(refused.value) == said


def test_a_subclass_says_its_own_name() -> None:
    class Mine(GRPO):
        pass

    with pytest.raises(TypeError, match=r"^Mine has no argument 'group_sise'; did you mean 'group_size'\?$"):
        Mine("MlpPolicy", "CartPole-v1", group_sise=4)  # type: ignore[call-arg]


def test_what_else_is_wrong_with_a_call_is_said_by_python() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'env'"):
        GRPO("MlpPolicy")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="multiple values for argument 'policy'"):
        GRPO("MlpPolicy", "CartPole-v1", policy="MlpPolicy")  # type: ignore[misc]


def test_the_signature_and_the_text_of_a_constructor_stay() -> None:
    class Plain:
        def __init__(self, width: int = 3) -> None:
            """Keep a width."""
            self.width = width

    before = inspect.signature(Plain.__init__)
    checked = explain_unknown_arguments(Plain.__init__)
    assert inspect.signature(checked) == before
    assert checked.__doc__ == "Keep a width."
    one = object.__new__(Plain)
    checked(one, width=5)
    assert one.width == 5
