"""The tables of hyperparameters in the pages are those that ``make tables`` writes."""

from collections.abc import Callable

import pytest

from docs.argument_tables import PAGES, ROOT, fill, make_library_table, make_request_table


@pytest.mark.parametrize(("name", "make_table"), PAGES.items())
def test_a_page_has_the_table_as_it_is_written_now(name: str, make_table: Callable[[], str]) -> None:
    page = (ROOT / name).read_text()
    assert make_table() in page
    assert fill(page, make_table()) == page, "run make tables"


def test_a_table_is_put_between_its_marks() -> None:
    page = "a\n<!-- hyperparameters -->\n\n| old |\n\n<!-- end -->\nb\n"
    assert fill(page, "| new |\n") == page.replace("old", "new")


def test_rows_say_name_default_range_and_meaning() -> None:
    assert "| `group_size` | `2` | branches of a group; with `action` as many as there are actions |" in (
        make_library_table().splitlines()
    )
    rows = make_request_table().splitlines()
    assert "| `n_epochs` | `10` | 1 to 100 | passes over each rollout |" in rows
    assert "| `clip_range` | `0.2` | above 0, up to 10 | trust interval of the probability ratio |" in rows
    assert "| `ref_sync_steps` | no renewal | 1 to 10,000,000 | " in make_request_table()
    assert "| `common_random_numbers` | `false` | `true`, `false` | " in make_request_table()
