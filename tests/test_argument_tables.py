"""The tables of hyperparameters in the pages are those that ``make tables`` writes."""

from collections.abc import Callable

import pytest

from docs.argument_tables import (
    INDEXED_PAGE,
    PAGES,
    ROOT,
    fill,
    make_field_index,
    make_library_table,
    make_request_table,
)


@pytest.mark.parametrize(("name", "make_table"), PAGES.items())
def test_a_page_has_the_table_as_it_is_written_now(name: str, make_table: Callable[[], str]) -> None:
    page = (ROOT / name).read_text()
    assert make_table() in page
    assert fill(page, make_table()) == page, "run make tables"


def test_the_index_names_every_field_as_it_is_written_now() -> None:
    page = (ROOT / INDEXED_PAGE).read_text()
    assert fill(page, make_field_index(page), "fields") == page, "run make tables"
    assert "| `total_timesteps` | [POST /train](#post-train)," in page


def test_an_index_lists_the_sections_of_a_field() -> None:
    table = "| {} field | meaning |\n|---|---|\n| `{}` | |\n| `both` | |\n"
    page = f"# A\n\n### `GET /a/{{b}}`\n\n{table.format('response', 'z')}\n#### Why\n\n{table.format('request', 'a')}"
    get, why = "[GET /a/{b}](#get-ab)", "[Why](#why)"
    assert make_field_index(page).splitlines()[2:] == [
        f"| `a` | {why} |",
        f"| `both` | {get}, {why} |",
        f"| `z` | {get} |",
    ]


def test_a_table_is_put_between_its_marks() -> None:
    page = "a\n<!-- hyperparameters -->\n\n| old |\n\n<!-- end -->\nb\n"
    assert fill(page, "| new |\n") == page.replace("old", "new")
    other = page.replace("hyperparameters", "fields").replace("old", "other")
    assert fill(page + other, "| new |\n", "fields") == page + other.replace("other", "new")


def test_rows_say_name_default_range_and_meaning() -> None:
    assert "| `group_size` | `2` | branches of a group; with `action` as many as there are actions |" in (
        make_library_table().splitlines()
    )
    rows = make_request_table().splitlines()
    assert "| `n_epochs` | `10` | 1 to 100 | passes over each rollout |" in rows
    assert "| `clip_range` | `0.2` | above 0, up to 10 | trust interval of the probability ratio |" in rows
    assert "| `ref_sync_steps` | no renewal | 1 to 10,000,000 | " in make_request_table()
    assert "| `common_random_numbers` | `false` | `true`, `false` | " in make_request_table()
