"""Call the listeners that callers pass."""

from collections.abc import Callable
from inspect import iscoroutine
from typing import TypeVar

from grpo_client.errors import InvalidArgument

News = TypeVar("News")


def tell(listen: Callable[[News], object], news: News, name: str) -> None:
    """Call a caller's listener.

    :param name: The argument it was given as.
    :raises InvalidArgument: If it is asynchronous: it would not be awaited, and so never run.
    """
    outcome = listen(news)
    if iscoroutine(outcome):
        outcome.close()
        raise InvalidArgument(f"{name} is an async function, which is not awaited; give an ordinary one.")
