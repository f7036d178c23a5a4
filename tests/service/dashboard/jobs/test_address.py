"""What an address asks for; whatever a visitor types into it, there is a page."""

import pytest

from service.dashboard.jobs.address import MAX_SHOWN, read_view
from service.jobs.views.listing import JobQuery
from service.schemas.jobs import JobStatus


def test_an_empty_address_shows_the_newest_jobs_and_leaves_the_charts_to_the_page() -> None:
    view = read_view({})
    assert view.query == JobQuery(hidden=False, sort="-created_at")
    assert (view.grouping, view.page, view.shown, view.metric) == ("", 1, None, "reward")


def test_everything_can_be_asked_for_at_once() -> None:
    view = read_view(
        {
            "q": "paper",
            "status": "failed,stopped",
            "env": "CartPole-v1",
            "tag": "x",
            "hidden": "1",
            "sort": "-mean_reward",
            "group": "recipe",
            "open": "a,b",
            "page": "3",
            "show": "0123abcd.4,89abcdef.0",
            "y": "train/loss",
        }
    )
    assert view.query == JobQuery(
        statuses=frozenset({JobStatus.FAILED, JobStatus.STOPPED}),
        env_name="CartPole-v1",
        tag="x",
        hidden=True,
        search="paper",
        sort="-mean_reward",
    )
    assert (view.grouping, view.opened, view.page) == ("recipe", frozenset({"a", "b"}), 3)
    assert (view.shown, view.metric) == ({"0123abcd": 4, "89abcdef": 0}, "train/loss")


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "²", "1e3", "9" * 30])
def test_a_page_that_cannot_be_is_the_first(page: str) -> None:
    assert read_view({"page": page}).page == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("0123abcd", {}),
        ("0123abcd.x,.1,0123abcd.99,xyz.1,0123abcd.-1", {}),
        ("' OR 1.1,0123abcd.1", {"0123abcd": 1}),
        (",".join(f"{i:08x}.{i % MAX_SHOWN}" for i in range(99)), {f"{i:08x}": i for i in range(MAX_SHOWN)}),
    ],
)
def test_what_is_no_job_with_a_colour_is_not_shown(text: str, expected: dict[str, int]) -> None:
    assert read_view({"show": text}).shown == expected


def test_what_does_not_exist_is_as_if_it_were_not_asked_for() -> None:
    view = read_view({"status": "done", "sort": "colour", "group": "moon", "hidden": "yes"})
    assert view == read_view({})
