"""What a process says of itself, and what is said of its end."""

import pytest

from grpo_core.process import describe_exit


@pytest.mark.parametrize(
    ("status", "description"),
    [
        (3, "exited with status 3"),
        (-9, "was killed by signal SIGKILL"),
        (-40, "was killed by signal 40"),  # a real-time signal without a name
    ],
)
def test_an_exit_status_is_described(status: int, description: str) -> None:
    assert describe_exit(status) == description
