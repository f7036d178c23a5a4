"""How listeners of callers are told what is new."""

from collections.abc import Callable
from inspect import iscoroutine
from typing import TypeVar

from grpo_client.errors import InvalidArgument

News = TypeVar("News")


def tell(listen: Callable[[News], object], news: News, name: str) -> None:
    """Call a caller's listener.

    :param name: The argument it was given as.
    :raises InvalidArgument: If it is asynchronous: nobody awaits it, so that it would never run.
    """
    outcome = listen(news)
    if iscoroutine(outcome):
        outcome.close()
        raise InvalidArgument(f"{name} is an async function, which is not awaited; give an ordinary one.")
