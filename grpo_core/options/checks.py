"""How arguments are judged, and what is raised where one is refused."""

from numbers import Integral, Real
from typing import NoReturn


def refuse(name: str, value: object, rule: str) -> NoReturn:
    """Raise the error of a refused argument.

    :param rule: What it must be instead, or what to do.
    :raises ValueError: Always.
    """
    raise ValueError(f"{name}={value!r} is not allowed: {rule}")


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number, NumPy's included; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Tell whether a value is a real number, NumPy's included; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)
