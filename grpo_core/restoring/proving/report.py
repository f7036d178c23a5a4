"""The result of a trial: whether an environment can be restored, and at what cost."""

from dataclasses import dataclass

# What the policy and the update take per step, in µs: about 100 for choosing an action and 100 for learning from it, on
# one core with networks of the default size.
_LEARNING_US = 200.0
# A group of the default plan, two branches of 32 steps: the state of one branch is kept about four times (the sum of
# 1/t up to 32), and each branch starts with a restore. Larger groups and longer branches pay less per step.
_GROUP_STEPS, _GROUP_CAPTURES, _GROUP_RESTORES = 64, 4, 2
# How many times as long as all the rest together restoring may take: a run is then four times as long as one in whole
# episodes. Wide enough for a noisy machine not to change the mode: what is restored by attributes or by an engine's own
# state is below a tenth, and what is not worth it was found at ten and more.
_MAX_RATIO = 3.0


@dataclass(frozen=True)
class LayerAccess:
    """How one wrapper, or the environment itself, is restored.

    :param name: Its class.
    :param means: What is captured, or by what.
    """

    name: str
    means: str


@dataclass(frozen=True)
class RestoringReport:
    """What a trial found out about an environment that can be restored. It prints well.

    :param env: The environment with its wrappers, as it prints.
    :param layers: How each layer is restored, the outermost first; layers without a state are left out.
    :param points: Where the states were captured that were restored.
    :param n_branches: Branches that were played again and compared.
    :param n_replayed: Steps that were compared.
    :param n_steps: Steps of the longest branch; fewer than wanted if episodes are shorter or steps slow.
    :param is_shortened: Whether fewer steps were tried than wanted because they are slow.
    :param seconds: How long the trial took.
    :param capture_us: Time per capture, median, in µs.
    :param restore_us: Time per restore, median, in µs.
    :param step_us: Time per step, median, in µs.
    :param takes_turns: Whether branches take turns in the environment, restored before each step, as is best where
        restoring is cheap.
    :param rewound: Where the random generators are that a restore puts back, too.
    :param shared: Where the objects are that other environments hold, too, and that resets or steps change.
    """

    env: str
    layers: tuple[LayerAccess, ...]
    points: tuple[str, ...]
    n_branches: int
    n_replayed: int
    n_steps: int
    is_shortened: bool
    seconds: float
    capture_us: float
    restore_us: float
    step_us: float
    takes_turns: bool
    rewound: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def overhead_us(self) -> float:
        """Time that restoring adds to a step, in µs."""
        if self.takes_turns:
            return self.capture_us + self.restore_us
        return (_GROUP_CAPTURES * self.capture_us + _GROUP_RESTORES * self.restore_us) / _GROUP_STEPS

    @property
    def pays(self) -> bool:
        """Whether restoring costs less than branches can be worth."""
        return self.overhead_us <= _MAX_RATIO * (self.step_us + _LEARNING_US)

    @property
    def group_mode(self) -> str:
        """The choice of ``group_mode="auto"``: ``"branch"``, or ``"episode"`` where restoring costs too much."""
        return "branch" if self.pays else "episode"

    @property
    def price(self) -> str:
        """The cost of restoring, as a sentence."""
        ratio = self.overhead_us / (self.step_us + _LEARNING_US)
        return (
            f"A capture takes {_show_us(self.capture_us)} and a restore {_show_us(self.restore_us)}, a step "
            f"{_show_us(self.step_us)}: training would spend {ratio:.1f} times as long on restoring as on all the rest."
        )

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers], default=0)
        *first, last = self.points
        points = f"{', '.join(first)} and {last}" if first else last
        lines = [
            f"{self.env} is restored exactly.",
            f"  proven in {self.seconds:.2f} s: {self.n_replayed} steps in {self.n_branches} branches of up to "
            f"{self.n_steps} steps,",
            f"  from states {points}",
            *[f"  {layer.name:<{width}}  {layer.means}" for layer in self.layers],
            f"  per capture {_show_us(self.capture_us)}, restore {_show_us(self.restore_us)}, step "
            f"{_show_us(self.step_us)}",
            f'  group_mode="auto" takes "{self.group_mode}"',
        ]
        if self.is_shortened:
            lines.insert(3, "  Fewer steps were tried than wanted, because they are slow.")
        if self.rewound:
            lines.append(f"  {self.rewound[0]} is restored, too: all branches of a group draw the same noise from it.")
        if not self.pays:
            lines.append(f"  {self.price}")
        return "\n".join(lines)


def _show_us(us: float) -> str:
    """Return a time with at least two digits, in the unit that suits it."""
    number, unit = (us / 1000, "ms") if us >= 1000 else (us, "µs")
    return f"{number:.1f} {unit}" if number < 10 else f"{number:.0f} {unit}"
