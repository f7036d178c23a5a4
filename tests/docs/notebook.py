"""Runs the code cells of a notebook in their order, in one process: ``python -m tests.docs.notebook FILE``.

As Jupyter does, it has the last expression of a cell show itself.
"""

import argparse
import ast
import json
from pathlib import Path
from typing import Any


def run_notebook(notebook: Path) -> None:
    """Run all code cells; one that fails ends the run with its error."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            _show(_run_cell("".join(cell["source"]), cell["id"], names))


def _run_cell(code: str, name: str, names: dict[str, Any]) -> Any:
    tree = ast.parse(code, name)
    *statements, last = tree.body
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), names)
        return None
    exec(compile(ast.Module(statements, []), name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names)


def _show(shown: Any) -> None:
    if shown is not None:
        print(shown._repr_html_() if hasattr(shown, "_repr_html_") else repr(shown))  # noqa: T201  # the test reads it


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", metavar="FILE", type=Path)
    run_notebook(parser.parse_args().file)
