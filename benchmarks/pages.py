"""The blocks of code in Markdown pages."""

import re
from typing import NamedTuple

# A fence's first line holds the language, and after a blank what else is said of the block.
_BLOCK = re.compile(r"^```(\w+)(?: ([^\n`]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r'title="([\w.-]+)"')


class Block(NamedTuple):
    """One fenced block of code.

    :param language: What follows the opening fence, such as ``python``.
    :param options: The rest of that line.
    :param code: What is between the fences.
    :param line: Number of the line that the code begins in, from 1.
    """

    language: str
    options: str
    code: str
    line: int

    @property
    def title(self) -> str | None:
        """Name of the file that the block is to be saved in; None if it is to be run."""
        found = _TITLE.search(self.options)
        return found and found[1]

    @property
    def is_server(self) -> bool:
        """Whether the block starts a server that the blocks below it talk to."""
        return "server" in self.options.split()


def list_blocks(text: str) -> list[Block]:
    """List the blocks of a page, in their order."""
    return [
        Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start(3)) + 1)
        for found in _BLOCK.finditer(text)
    ]
