"""Write ``benchmarks/RESULTS.md``, its curves and the figures in ``docs/figures.md`` from the finished runs.

Runs with other settings than today's are left out: after a change of settings, make the missing runs first.
"""

import argparse
import re
from pathlib import Path

from benchmarks.learning.ablation import ABLATION_PATH, ABLATION_TASKS, ABLATIONS, make_rows
from benchmarks.learning.methods import METHODS, PPO_METHODS, make_specs
from benchmarks.learning.peer_settings import PUBLISHED
from benchmarks.learning.suite import get_path
from benchmarks.lib.plots import plot_curves
from benchmarks.lib.runs import Run, read_runs, select_runs
from benchmarks.lib.tables import (
    compute_iqm,
    format_aims,
    format_difference,
    format_score,
    format_table,
    get_scores,
    list_aims,
)
from benchmarks.lib.tasks import FIRST_SEED, TASKS, Task
from benchmarks.measure_speed import format_sections

_FOLDER = Path(__file__).parent
# The columns of the table of peers.
_PEERS = {
    "grpo": "GRPO, preset",
    "ppo_shared": "PPO, the same settings",
    "ppo_normalized": "PPO, defaults, falling rate, normalised",
    "ppo_default": "PPO, defaults",
    "ppo_zoo": "PPO, zoo",
    "trpo_zoo": "TRPO, zoo",
}
_INTRO = f"""# Comparison at equal simulator steps

`python -m benchmarks.report` writes this page; the runs are in `results/`, one JSON line each with its settings,
curve and versions. `make bench-suite` makes the missing ones and writes the page.

- **Budget.** Every simulator step of every branch or candidate counts; evaluation does not. Methods that work in
  rollouts complete the last one: "steps taken" is the mean of the steps really used.
- **Reward.** The environment's own, for training and for evaluation, except for the negative control.
- **Score.** The mean of 100 episodes (InvertedDoublePendulum and LunarLander 50, MuJoCo's others 30, FrozenLake
  1,000; on Pendulum 1,000 of our policies and of PPO's with what it shares) of the final deterministic policy, in fresh
  environments with seeds of their own. For FrozenLake it is the success rate.
- **Seeds.** From {FIRST_SEED} on, none used in tuning, but for two looks that settled what was left out: TRPO's step on
  Hopper's 9000 to 9006, and opposite noise on Ant's 13000 and 13001, which no table shows.
  Our own methods on CartPole and Acrobot have seeds from 6000 on, on HalfCheetah and DoorKey from 8000, on Hopper and
  Swimmer from 9000, on Pendulum from 11000, on MultiRoom from 12000, on Walker2d from 13000, on Breakout from 15000,
  and the general presets from 10000, the one for long trainings from 16000: their settings were changed after earlier
  ones had been run on the others. The one for discrete actions was changed once more after it had been run on these.
- **IQM.** Interquartile mean over seeds, with the 95 % interval of a percentile bootstrap over seeds, as rliable
  defines them (arXiv 2108.13264); no interval for fewer than five seeds. With 3 seeds the IQM is the mean.
- **Ours.** "Preset" is the environment's own in `grpo_core/options/presets.yml`, those of MiniGrid and Breakout in
  `learning/grpo_settings.py`: the service gives these tasks a general preset. "General
  preset" is what a user gets who tunes nothing and whose environment has none: set it beside PPO's defaults.
- **Peers.** "Zoo settings" are those of rl-baselines3-zoo 2.9.2, most of them tuned for more steps than here; schedules
  run over the budget here. `learning/peer_settings.py` names the entry of each, also where an older version of the
  environment lends its own. The zoo has none for FrozenLake-v1, and for TRPO none for
  InvertedDoublePendulum-v5. "What it shares" has every setting of our preset that
  PPO knows, too. "Defaults, falling rate, normalised" is what the usual
  advice comes to: the learning rate falls from 3e-4 to 0, and VecNormalize is around the environment.
- **Published.** One training each from [benchmark.md](https://github.com/DLR-RM/rl-baselines3-zoo/blob/master/benchmark.md)
  of rl-baselines3-zoo, for orientation: of SAC where actions are continuous, of DQN elsewhere.
- **Small grids.** MiniGrid's and MinAtar's observations are flattened for every method (`lib/grids.py`).
- **Negative control.** The zero-advantage port (`learning/zero_advantage.py`) on CartPole-v1, trained on
  `optimized_cartpole`.
"""

_ABLATION_INTRO = """## What each part adds

`make bench-ablation` makes these runs. All other settings are those of the task's preset, on Pendulum of the
former one (`learning/ablation.py`), whose policies were scored by 100 episodes. The seeds are others than above.
"""

_SPEED_INTRO = """# Speed

`make bench-speed` measures all of it and writes this page. Times come from one machine, which others share. Methods
that are compared took turns in one run, so trust the ratios. Where no commit is named, the library's default was still
`baseline="residual"`.
"""


def read_comparison(task: Task) -> dict[str, list[Run]]:
    """Return the finished runs of a task, by method; those of other settings than today's are left out."""
    finished = read_runs(get_path(task.env_name))
    return {name: select_runs(make_specs(task, name, task.n_seeds), finished) for name in METHODS}


def make_comparison(task: Task) -> str:
    """Draw the learning curves of a task, and return its section; empty without runs."""
    runs = read_comparison(task)
    if not any(runs.values()):
        return ""
    published = PUBLISHED.get(task.env_name)
    marks = {} if task.aim is None else {f"aim: {task.aim:,g}": task.aim}
    text = ""
    if published is not None:
        marks[f"{published.algorithm}, published: {published.score:,g}"] = published.score
        text = (
            f"Published: {published.algorithm} {published.score:,} after {published.n_steps:,} steps"
            f"{'' if published.env_name == task.env_name else f' of {published.env_name}'}."
        )
    path = _FOLDER / "results" / "curves" / f"{task.file_name}.png"
    plot_curves(task, {name: (method.label, runs[name]) for name, method in METHODS.items()}, marks, path)
    table = format_table({METHODS[name].label: rows for name, rows in runs.items()}, task.n_decimals)
    aims = format_aims(task, runs["grpo"], [runs[name] for name in PPO_METHODS])
    paragraphs = (
        f"## {task.title}",
        f"{aims} {text}".strip(),
        table + _format_control(runs["zero_advantage"]),
        f"![Learning curves](results/curves/{path.name})\n",
    )
    return "\n\n".join(paragraphs)


def _format_control(runs: list[Run]) -> str:
    if not runs:
        return ""
    largest = max(run.notes["max_abs_advantage"] for run in runs)
    return f"\n\nLargest absolute advantage in all runs of the zero-advantage port: {largest}."


def make_ablation(task: Task) -> str:
    """Return the ablation tables of a task, of those that compare at least two rows."""
    finished, shown = read_runs(ABLATION_PATH), set[int]()
    sections = []
    for ablation in ABLATIONS.values():
        if task.env_name not in ablation.env_names:
            continue
        rows = {label: select_runs(specs, finished) for label, specs in make_rows(task, ablation).items()}
        runs = {id(run) for row in rows.values() for run in row}
        # Tables share runs, so that one row, or half of the rows, may be all that there is of another table.
        if sum(map(bool, rows.values())) > 1 and not runs <= shown:
            sections.append(f"### {task.title}: {ablation.title}\n\n{format_table(rows, task.n_decimals)}\n")
        shown |= runs
    return "\n".join(sections)


def make_summary() -> str:
    """Return the table of the tasks that GRPO's preset was run on, beside the best of PPO's settings that were."""
    lines = [
        "| task | steps | GRPO, preset | worst seed | general preset | best PPO | its settings | difference | missed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        runs = read_comparison(task)
        if not runs["grpo"]:
            continue
        ppo = [name for name in PPO_METHODS if runs[name]]
        best = max(ppo, key=lambda name: float(compute_iqm(get_scores(runs[name]))), default=None)
        grpo, general, peer = (
            format_score(runs[name] if name else [], task.n_decimals) for name in ("grpo", "grpo_general", best)
        )
        worst = f"{get_scores(runs['grpo']).min():,.{task.n_decimals}f}"
        settings = METHODS[best].label.removeprefix("SB3 PPO, ") if best else "-"
        aims = list_aims(task, runs["grpo"], [runs[name] for name in ppo])
        missed = "; ".join(aim for aim, is_reached in aims.items() if not is_reached)
        above = format_difference(runs["grpo"], runs[best] if best else [], task.n_decimals)
        cells = (task.env_name, f"{task.total_timesteps:,}", grpo, worst, general, peer, settings, above, missed)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_peers() -> str:
    """Return the table of GRPO's preset beside each of PPO's settings and TRPO, with the number of seeds last."""
    lines = [f"| task, steps | {' | '.join(_PEERS.values())} |", "|---" * (1 + len(_PEERS)) + "|"]
    for task in TASKS:
        runs = read_comparison(task)
        if runs["grpo"]:
            cells = (format_score(runs[name], task.n_decimals).removesuffix(" seeds") for name in _PEERS)
            lines.append(f"| {task.env_name}, {task.total_timesteps:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def fill_in(page: str) -> str:
    """Put today's tables between the marks of a page, ``<!-- NAME -->`` and ``<!-- end -->``."""
    for name, make in {"figures": make_summary, "peers": make_peers}.items():
        between = re.compile(f"(?<=<!-- {name} -->\n\n).*?(?=\n<!-- end -->)", flags=re.DOTALL)
        page, n_filled = between.subn(lambda match, make=make: make(), page)  # type: ignore[misc]
        assert n_filled == 1, name
    return page


def main() -> None:
    """Write the pages and the curves."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    comparisons = [make_comparison(task) for task in TASKS]
    ablations = [text for task in ABLATION_TASKS if (text := make_ablation(task))]
    if ablations:
        ablations.insert(0, _ABLATION_INTRO)
    speed = format_sections()
    if speed:
        speed.insert(0, _SPEED_INTRO)
    path = _FOLDER / "RESULTS.md"
    path.write_text("\n".join(text for text in (_INTRO, *comparisons, *ablations, *speed) if text))
    page = _FOLDER.parent / "docs" / "figures.md"
    page.write_text(fill_in(page.read_text()))
    print(f"wrote {path.name} and its curves, and the tables of {page.name}")


if __name__ == "__main__":
    main()
