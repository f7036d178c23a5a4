"""The settings of a job on its page."""

from service.dashboard.jobs.record_tables import count_origins


def test_settings_are_counted_by_who_chose_them() -> None:
    names = ["gamma", "seed", "horizon", "n_steps", "clip_range", "net_arch"]
    origins = {"gamma": "request", "seed": "request", "horizon": "preset", "n_steps": "default"}
    preset = "Pendulum-v1"
    assert count_origins(names, origins, preset) == (
        "Of 6 settings: 2 chosen, 1 from the preset Pendulum-v1, 3 left at the default."
    )
    assert count_origins(names, {}, "none") == "Of 6 settings: 0 chosen, 6 left at the default."
