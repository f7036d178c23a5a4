"""Numbers, durations and sizes as people read them."""

import math
from collections.abc import Sequence

_MINUTE, _HOUR = 60, 3600


def format_count(count: int) -> str:
    """Format 10000 as 10,000."""
    return f"{count:,}"


def format_items(count: int, noun: str) -> str:
    """Format a number of things, such as 1 setting or 1,200 settings."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_number(number: float) -> str:
    """Format a measured number with three digits, or with one decimal if it is large."""
    if abs(number) >= 100:
        return f"{number:,.1f}"
    return f"{number:.3g}" if abs(number) >= 0.001 or number == 0 else f"{number:.1e}"


def write_exactly(number: float) -> str:
    """Write a number as precisely as a 32-bit float holds it."""
    return f"{number:.8g}"


def format_duration(seconds: float) -> str:
    """Format a duration as 42 s, 3:07 min or 1:02:40 h."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}:{whole % _MINUTE:02} min"
    return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02}:{whole % _MINUTE:02} h"


def format_size(n_bytes: int) -> str:
    """Format a size in bytes, KB, MB or GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes} bytes"


def format_range(rewards: Sequence[float]) -> str:
    """Format what seeds have earned that are too few for an interval; the text is empty for fewer than two."""
    if len(rewards) < 2:
        return ""
    if has_no_width((min(rewards), max(rewards))):
        return "all seeds alike"
    return f"seeds from {format_number(min(rewards))} to {format_number(max(rewards))}"


def format_interval(interval: tuple[float, float] | None) -> str:
    """Format a 95 % interval over episodes; the text is empty without one, as after a single episode."""
    if interval is None:
        return ""
    if has_no_width(interval):
        return "all episodes alike"
    return f"{format_number(interval[0])} to {format_number(interval[1])}"


def format_share(share: float) -> str:
    """Format a share of 1 in percent."""
    return f"{100 * share:.3g} %"


def format_success(rate: float | None) -> str:
    """Format which share of episodes succeeded; the text is empty where the environment does not define success."""
    return "" if rate is None else f"success {format_share(rate)}"


def has_no_width(interval: tuple[float, float]) -> bool:
    """Return whether all have earned the same; a mean of equal numbers may differ in the last digits."""
    return math.isclose(*interval, rel_tol=1e-9, abs_tol=1e-12)


def format_margin(interval: tuple[float, float] | None) -> str:
    """Format how far a 95 % interval reaches to both sides of its mean; the text is empty without one.

    Use this for intervals that assume a normal distribution, such as Student's interval of a few seeds: its ends may
    lie beyond what an episode can earn, and nothing more exact is known of them.
    """
    return "" if interval is None else f"± {format_number((interval[1] - interval[0]) / 2)}"
