"""Draw opposite noise for the branches of a pair (antithetic, or mirrored, sampling)."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from grpo_core.groups.rollout import Place


class AntitheticGenerator(np.random.Generator):
    """Another generator's draws, except that every second branch of a group gets its neighbour's, negated.

    Each branch alone is drawn as ever. It does not matter whether both branches of a pair are drawn for together or one
    after the other; where the first has ended, the second goes on alone, and so does the last of an odd number.

    :param rng: Draws the noise.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng.bit_generator)
        self._places: list[Place] = []
        # The noise of first branches, by the places of those that are to have it negated.
        self._waiting: dict[Place, Any] = {}

    def draw_for(self, places: Iterable[Place]) -> "AntitheticGenerator":
        """Say whose noise is drawn next.

        :param places: Time, group and branch of each row.
        """
        self._places = list(places)
        return self

    def standard_normal(self, *arguments: Any, **options: Any) -> Any:
        """Draw normal noise, one row per branch."""
        noise = super().standard_normal(*arguments, **options)
        for row, (t, group, branch) in enumerate(self._places):
            if branch % 2 == 0:
                self._waiting[t, group, branch + 1] = noise[row]
            elif (opposite := self._waiting.pop((t, group, branch), None)) is not None:
                noise[row] = -opposite
        return noise
