"""How the form's fields and lines of values become a sweep."""

from service.dashboard.new_job.sweep_panel import make_body


def test_lines_of_values_become_the_space() -> None:
    body = make_body(
        {"env_name": "CartPole-v1", "gamma": 0.9, "model_name": "m", "seed": 4, "replace": True},
        "learning_rate = 0.001, 1e-4\n\ngamma=0.9,null\nnet_arch = [8], [8, 8]\nlr_schedule = linear, constant\n"
        'wrappers = [], ["flatten", {"name": "frame_stack", "n": 4}]',
        "0, 7",
    )
    assert body == {
        "base": {"env_name": "CartPole-v1"},
        "space": {
            "learning_rate": [0.001, 0.0001],
            "gamma": [0.9, None],
            "net_arch": [[8], [8, 8]],
            "lr_schedule": ["linear", "constant"],
            "wrappers": [[], ["flatten", {"name": "frame_stack", "n": 4}]],
        },
        "seeds": [0, 7],
        "name": "m",
    }


def test_what_is_empty_is_left_out() -> None:
    assert make_body({}, None, " ") == {"base": {}, "space": {}}
    assert make_body({}, "gamma", "x") == {"base": {}, "space": {"gamma": []}, "seeds": ["x"]}
