"""RL Baselines3 Zoo with GRPO among its algorithms.

``python -m grpo_zoo --algo grpo --env CartPole-v1`` trains with the zoo's ``train.py`` and all its options, and
``python -m grpo_zoo enjoy --algo grpo --env CartPole-v1`` plays the policy. Without ``--conf-file``, hyperparameters
come from ``presets.yml``. Your own script only needs ``register()``.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files

from grpo_terminal import end_well

_SCRIPTS = ("train", "enjoy")


def register() -> None:
    """Add ``"grpo"`` to the zoo's algorithms in this process.

    :raises ImportError: If the zoo, or a package that it needs, is not installed.
    """
    try:
        zoo = import_module("rl_zoo3")
    except ImportError as error:
        raise ImportError(f"RL Baselines3 Zoo cannot be imported ({error}); pip install rl_zoo3.") from error
    from grpo import GRPO  # torch takes seconds, in which Ctrl-C would end in a traceback

    zoo.ALGOS["grpo"] = GRPO


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Fill in what a command line leaves out: the script, the algorithm and the file of its presets.

    :param arguments: Name of the zoo's script, which may be left out for ``train``, and its options.
    :raises ValueError: If it is another name.
    """
    options = list(arguments)
    if options and not options[0].startswith("-") and options[0] not in _SCRIPTS:
        raise ValueError(f"{options[0]!r} is no script of the zoo that is run here; choose {' or '.join(_SCRIPTS)}.")
    script = options.pop(0) if options and options[0] in _SCRIPTS else "train"
    words = [word for option in options for word in option.split("=", 1)]
    if "--algo" not in words:
        options += ["--algo", "grpo"]
    algorithm = words[words.index("--algo") + 1 :][:1] if "--algo" in words else ["grpo"]
    if script == "train" and algorithm == ["grpo"] and not {"-conf", "--conf-file"} & set(words):
        options += ["--conf-file", str(files("grpo_core.options") / "presets.yml")]
    return [script, *options]


def main() -> int:
    """Run one of the zoo's scripts.

    :return: The exit status: 0, 1 without the zoo, 2 if the command line cannot work, 130 after Ctrl-C.
    """
    return end_well(_run)


def _run() -> int:
    try:
        script, *options = complete_arguments(sys.argv[1:])
        register()
    except (ImportError, ValueError) as error:
        sys.stderr.write(f"grpo_zoo: {error}\n")
        return 1 if isinstance(error, ImportError) else 2
    sys.argv[1:] = options
    # The zoo's enjoy normalises, in an environment that it does not tell the model of.
    warnings.filterwarnings("ignore", r"predict\(\) takes normalised observations")
    # rl_zoo3.cli would import packages that only the zoo's plots need.
    getattr(import_module(f"rl_zoo3.{script}"), script)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
