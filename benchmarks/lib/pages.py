"""The code blocks of Markdown pages."""

import re
from typing import NamedTuple

# The first line of a fence has the language and, after a space, options.
_BLOCK = re.compile(r"^```(\w+)(?: ([^\n`]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE = re.compile(r'title="([\w.-]+)"')


class Block(NamedTuple):
    """One fenced block of code.

    :param language: First word after the opening fence, such as ``python``.
    :param options: Rest of that line.
    :param code: Text between the fences.
    :param line: Number of the code's first line, from 1.
    """

    language: str
    options: str
    code: str
    line: int

    @property
    def title(self) -> str | None:
        """Name of the file to save the block in; None for a block to run."""
        found = _TITLE.search(self.options)
        return found and found[1]

    @property
    def is_server(self) -> bool:
        """Whether the block starts a server for the blocks below it."""
        return "server" in self.options.split()


def list_blocks(text: str) -> list[Block]:
    """List the blocks of a page in their order."""
    return [
        Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start(3)) + 1)
        for found in _BLOCK.finditer(text)
    ]
