"""The settings of a job on its page."""

from service.dashboard.jobs.record_tables import count_origins, describe_event, list_columns
from service.jobs.records.history import HistoryEvent
from tests.support import make_evaluation


def test_settings_are_counted_by_who_chose_them() -> None:
    names = ["gamma", "seed", "horizon", "n_steps", "clip_range", "net_arch"]
    origins = {"gamma": "request", "seed": "request", "horizon": "preset", "n_steps": "default"}
    preset = "Pendulum-v1"
    assert count_origins(names, origins, preset) == (
        "Of 6 settings: 2 chosen, 1 from the preset Pendulum-v1, 3 left at the default."
    )
    assert count_origins(names, {}, "none") == "Of 6 settings: 0 chosen, 6 left at the default."


def test_evaluations_have_a_success_rate_where_the_environment_knows_success() -> None:
    plain, goal = make_evaluation(0), make_evaluation(5).model_copy(update={"success_rate": 0.5})
    assert "Success" not in list_columns([plain])
    assert "Success" in list_columns([plain, goal])
    texts = [describe_event(HistoryEvent(1, "job.evaluation", row.model_dump(), None))[1] for row in (plain, goal)]
    assert texts == [
        "Evaluation at step 0: 1 (all episodes alike)",
        "Evaluation at step 5: 1 (all episodes alike), success 50 %",
    ]
