"""The commands and blocks that the newcomer finds in a page, and in README.md."""

from pathlib import Path

import pytest

from benchmarks.lib.pages import Block, list_blocks
from benchmarks.newcomer import ReadmeError, format_seconds, list_commands, list_examples

PAGE = """
```console
$ git clone https://example.org/it.git
cd it
make serve    # starts it
make test
```

Then:

```bash
curl -X POST localhost/train
```

```text
make coffee
```

```python
ask("/inference")
```

```python title="later.py"
never()
```
"""


def test_blocks_are_found_with_their_language_line_and_title() -> None:
    console, bash, text, python, later = list_blocks(PAGE)
    assert (bash.language, bash.code, bash.line) == ("bash", "curl -X POST localhost/train\n", 12)
    assert (console.title, text.language, python.title, later.title) == (None, "text", None, "later.py")
    assert not bash.is_server
    assert list_blocks("```bash server\nrun\n```")[0].is_server


def test_commands_are_listed_without_prompts_comments_and_cloning() -> None:
    assert list_commands(list_blocks(PAGE)) == ["make serve", "make test"]


def test_a_page_that_does_not_start_the_server_is_refused() -> None:
    with pytest.raises(ReadmeError, match="make serve"):
        list_commands(list_blocks("```console\nmake test\n```"))


def test_examples_end_with_the_first_inference() -> None:
    assert [block.language for block in list_examples(list_blocks(PAGE))] == ["bash", "python"]
    with pytest.raises(ReadmeError, match="inference"):
        list_examples([Block("bash", "", "true", 1)])


def test_the_readme_leads_from_its_first_commands_to_an_inference() -> None:
    blocks = list_blocks((Path(__file__).parents[2] / "README.md").read_text())
    assert list_commands(blocks) == ["make serve"]
    assert "/inference" in list_examples(blocks)[-1].code


def test_durations_are_written_in_minutes_and_seconds() -> None:
    assert format_seconds(5.4) == "0 min  5 s"
    assert format_seconds(119.6) == "2 min  0 s"
