"""How a policy is to be played; what plays it is ``service.models.episodes``, in a worker."""

from typing import NamedTuple

import numpy as np

from grpo_core.actor.actor import Actor
from grpo_core.evaluation import Policy, make_policy


class Play(NamedTuple):
    """How a policy is to be played.

    :param actor: The policy.
    :param env_name: Registered environment.
    :param seed: Of the first episode's reset, and of whatever is drawn.
    :param deterministic: Take the most likely actions instead of drawing them.
    """

    actor: Actor
    env_name: str
    seed: int
    deterministic: bool

    def make_policy(self) -> Policy:
        """Let the actor choose the actions."""
        return make_policy(self.actor, self.deterministic, np.random.default_rng(self.seed))
