"""Write ``benchmarks/RESULTS.md`` and ``benchmarks/results/curves/`` from the finished runs.

Runs with other settings than today's are left out: after a change of settings, make the missing runs first.
"""

from pathlib import Path

from benchmarks.learning.ablation import ABLATION_PATH, ABLATIONS, get_label, make_ablation_specs
from benchmarks.learning.methods import METHODS, make_specs
from benchmarks.learning.suite import get_path
from benchmarks.lib.plots import plot_curves
from benchmarks.lib.runs import Run, read_runs, select_runs
from benchmarks.lib.tables import count_decimals, format_aim, format_table
from benchmarks.lib.tasks import FIRST_SEED, TASKS, Task
from benchmarks.measure_speed import format_sections

_FOLDER = Path(__file__).parent
_INTRO = f"""# Comparison at equal simulator steps

`python -m benchmarks.report` writes this page; the runs are in `results/`, one JSON line each with its settings,
curve and versions. `make bench-suite` makes the missing ones and writes the page.

- **Budget.** Every simulator step of every branch or candidate counts; evaluation does not. Methods that work in
  rollouts complete the last one: "steps taken" is the mean of the steps really used.
- **Reward.** The environment's own, for training and for evaluation, except for the negative control.
- **Score.** The mean of 100 episodes (LunarLander 50, Hopper 30, FrozenLake 1,000) of the final deterministic policy,
  in fresh environments with seeds of their own. For FrozenLake it is the success rate.
- **Seeds.** From {FIRST_SEED} on, the same for every method, none used in tuning.
- **IQM.** Interquartile mean over seeds, with the 95 % interval of a percentile bootstrap over seeds, as rliable
  defines them (arXiv 2108.13264). With 3 seeds it is the mean, and the interval is only a hint.
- **Peers.** "Zoo settings" are those of rl-baselines3-zoo 2.9.2, most of them tuned for more steps than here; schedules
  run over the budget here. The zoo has none for FrozenLake-v1, where PPO, TRPO and ARS run with their defaults.
  Hopper-v5 takes those of Hopper-v4.
- **Negative control.** The zero-advantage port (`learning/zero_advantage.py`) on CartPole-v1, trained on
  `optimized_cartpole`.
"""

_SPEED_INTRO = """# Speed

`make bench-speed` measures all of it and writes this page. Times come from one machine. Methods that are compared took
turns in one run, so trust the ratios.
"""


def make_comparison(task: Task) -> str:
    """Draw the learning curves of a task, and return its section; empty without runs."""
    finished = read_runs(get_path(task.env_name))
    runs = {name: select_runs(make_specs(task, name, task.n_seeds), finished) for name in METHODS}
    if not any(runs.values()):
        return ""
    plot_curves(
        task,
        {name: (method.label, runs[name]) for name, method in METHODS.items()},
        _FOLDER / "results" / "curves" / f"{task.env_name}.png",
    )
    table = format_table({METHODS[name].label: rows for name, rows in runs.items()}, count_decimals(task))
    return "\n\n".join(
        (
            f"## {task.env_name}, {task.total_timesteps:,} steps",
            format_aim(task, runs["grpo"], (runs["ppo_zoo"], runs["ppo_default"])),
            table + _format_control(runs["zero_advantage"]),
            f"![Learning curves](results/curves/{task.env_name}.png)\n",
        )
    )


def _format_control(runs: list[Run]) -> str:
    if not runs:
        return ""
    largest = max(run.notes["max_abs_advantage"] for run in runs)
    return f"\n\nLargest absolute advantage in all runs of the zero-advantage port: {largest}."


def make_ablation(task: Task) -> str:
    """Return the ablation tables of a task; empty without runs."""
    finished = read_runs(ABLATION_PATH)
    sections = []
    for ablation in ABLATIONS:
        rows: dict[str, list[Run]] = {}
        for spec in make_ablation_specs(task, ablation):
            rows.setdefault(get_label(ablation, spec), []).extend(select_runs([spec], finished))
        if any(rows.values()):
            sections.append(f"### {task.env_name}: {ablation.title}\n\n{format_table(rows, count_decimals(task))}\n")
    return "\n".join(sections)


def main() -> None:
    """Write the page and the curves."""
    comparisons = [make_comparison(task) for task in TASKS.values()]
    ablations = [text for task in TASKS.values() if (text := make_ablation(task))]
    if ablations:
        ablations.insert(
            0, "## What each part adds\n\nAll other settings are those of the comparison; the seeds are others.\n"
        )
    speed = format_sections()
    if speed:
        speed.insert(0, _SPEED_INTRO)
    path = _FOLDER / "RESULTS.md"
    path.write_text("\n".join(text for text in (_INTRO, *comparisons, *ablations, *speed) if text))
    print(f"wrote {path.name} and its curves")


if __name__ == "__main__":
    main()
