"""Objects in JSON that have each name once."""

from collections import Counter
from typing import Any

from service.errors import InvalidFieldsError


def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its names and values; a hook for ``json.loads``.

    :raises InvalidFieldsError: If a name is there twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = [name for name, n in Counter(name for name, _ in pairs).items() if n > 1]
        message = "this name is there more than once; send it once"
        raise InvalidFieldsError([{"type": "name_twice", "loc": ("body", name), "msg": message} for name in twice])
    return made
