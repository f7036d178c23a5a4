"""The command line of the library: train, evaluate, play, describe and export policies without a server.

``python grpo.py train --env CartPole-v1 --output cartpole``, or ``grpo train`` where the package is installed. Options
that rl-baselines3-zoo has too go by its names.

- ``commands``: all commands, and the errors that end them. ``__main__`` is there for ``python -m grpo_cli``.
- ``train``, with its ``training_settings``; ``evaluate``, ``play``, ``info``, ``export``: one command each.
- ``serve``: the server, whose ``server_options`` ``run_api.py`` has too.
- ``options``: what several commands share. ``model``: the file that they read, and an environment to play in.
"""

from collections.abc import Sequence

from grpo_terminal import end_well


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :param arguments: The words after the program's name; None takes them from the command line.
    :return: The exit status: 0, 2 if the command line cannot work, 130 after Ctrl-C, 143 after SIGTERM.
    """
    return end_well(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    # Not above, where Ctrl-C would end in a traceback.
    from grpo_cli.commands import run

    return run(arguments)
