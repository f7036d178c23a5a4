"""A job's verdict follows from its curve, and is no more certain than that."""

import itertools
from typing import Any, get_args

import numpy as np
import pytest

from grpo_core.options.presets import get_preset
from service.jobs.judging.verdict import Evidence, judge
from service.schemas.jobs import EndedBy, EvaluationRow, JobStatus, Verdict, VerdictState
from service.schemas.training import TrainConfig
from tests.support import make_plan

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 1, 300)
RISE = np.linspace(0.0, 1.0, 300)
N_CURVES = 200


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return make_plan().config


@pytest.fixture
def judge_curve(config: TrainConfig) -> Any:
    def judge_it(curve: Any, status: JobStatus = JobStatus.RUNNING, **evidence: Any) -> Verdict:
        verdict = judge(Evidence(status, config, 1000, rollout_rewards=list(curve), **evidence))
        assert verdict.state in get_args(VerdictState)
        assert verdict.text.endswith(".")
        return verdict

    return judge_it


def smooth(noise: Any, width: int = 100) -> Any:
    """Average as ``rollout/ep_rew_mean`` does."""
    return np.convolve(noise, np.full(width, 1 / width), mode="valid")


class TestBeforeThereIsACurve:
    @pytest.mark.parametrize(
        ("status", "state"),
        [(JobStatus.QUEUED, "waiting"), (JobStatus.RUNNING, "starting"), (JobStatus.STOPPED, "starting")],
    )
    def test_it_says_so(self, judge_curve: Any, status: JobStatus, state: str) -> None:
        assert judge_curve([], status).state == state
        assert judge_curve([1.0, 9.0, 20.0], status).state == state

    def test_before_its_first_step_the_worker_is_starting(self, config: TrainConfig) -> None:
        assert judge(Evidence(JobStatus.RUNNING, config)).text.startswith("Starting the worker")
        assert judge(Evidence(JobStatus.RUNNING, config, n_timesteps=1)).text.startswith("Too few episodes")

    def test_in_the_end_nothing_is_promised(self, judge_curve: Any, config: TrainConfig) -> None:
        assert judge_curve([1.0, 2.0], JobStatus.COMPLETED).text.endswith("the saved policy was not evaluated.")
        unsaved = judge_curve([1.0, 2.0], JobStatus.STOPPED, is_saved=False)
        assert unsaved.text.endswith("and no policy was saved at its end.")
        queued = judge(Evidence(JobStatus.STOPPED, config, is_saved=False))
        assert (queued.state, queued.text) == (
            "starting",
            "The job was stopped at step 0, and no policy was saved at its end.",
        )

    def test_a_failure_is_one_whatever_came_before(self, judge_curve: Any) -> None:
        verdict = judge_curve(RISE * 500, JobStatus.FAILED, reward_threshold=400.0)
        assert verdict.state == "failed"
        assert "error_message" in verdict.text


class TestCurves:
    def test_one_that_rises_is_learning(self, judge_curve: Any) -> None:
        verdict = judge_curve(20 + 100 * RISE + NOISE)
        assert verdict.state == "learning"
        assert "Let it continue." in verdict.text
        assert "total_timesteps" in judge_curve(20 + 100 * RISE + NOISE, JobStatus.COMPLETED).text

    def test_the_figures_are_those_of_its_thirds(self, judge_curve: Any) -> None:
        text = judge_curve([10.0] * 10 + [20.0] * 10 + [30.0] * 10).text
        assert "it was about 10 and is about 30 now" in text

    @pytest.mark.parametrize("level", [-1200.0, 0.0, 25.0])
    def test_one_that_does_not_move_is_flat(self, judge_curve: Any, level: float) -> None:
        assert judge_curve([level] * 30).state == "flat"
        verdict = judge_curve(level + NOISE)
        assert verdict.state == "flat"
        assert "not clearly changed yet" in verdict.text

    def test_one_that_rose_and_stays_is_steady(self, judge_curve: Any) -> None:
        curve = np.concatenate([20 + 100 * RISE[::3], np.full(200, 120.0)]) + NOISE
        assert judge_curve(curve).state == "steady"

    def test_one_that_fell_from_the_start_or_from_its_best_is_worse(self, judge_curve: Any) -> None:
        assert judge_curve(120 - 100 * RISE + NOISE).state == "worse"
        peak = np.concatenate([np.full(100, 20.0), np.full(100, 120.0), np.full(100, 60.0)]) + NOISE
        verdict = judge_curve(peak)
        assert verdict.state == "worse"
        assert "was about 120" in verdict.text
        assert "keep_best" in verdict.text

    def test_how_far_is_left_to_go_is_said_unless_it_fell(self, judge_curve: Any) -> None:
        solved_from = "the environment counts as solved from 400 on."
        assert solved_from in judge_curve(20 + 100 * RISE + NOISE, reward_threshold=400.0).text
        fallen = judge_curve(120 - 100 * RISE + NOISE, reward_threshold=400.0)
        assert fallen.state == "worse"
        assert "counts as solved" not in fallen.text

    def test_where_the_best_policy_is_saved_it_says_that(self, config: TrainConfig) -> None:
        keeping = config.model_copy(update={"keep_best": True})
        verdict = judge(Evidence(JobStatus.RUNNING, keeping, 1000, rollout_rewards=list(120 - 100 * RISE)))
        assert "is saved" in verdict.text
        rewards = [20.0, 300.0, 100.0]
        fallen = judge(Evidence(JobStatus.RUNNING, keeping, 1000, evaluations=[evaluate(each) for each in rewards]))
        assert "now earns 100 per episode, down from about 300 at its best" in fallen.text

    def test_where_none_is_saved_it_says_that(self, config: TrainConfig) -> None:
        keeping = config.model_copy(update={"keep_best": True})
        evaluations, final = [evaluate(300.0), evaluate(100.0)], evaluate(100.0)
        verdict = judge(Evidence(JobStatus.STOPPED, keeping, 1000, "stop", [], evaluations, final, is_saved=False))
        assert "it earned 100 per episode, down from about 300 at its best" in verdict.text
        assert verdict.text.endswith("no policy was saved at its end.")

    @pytest.mark.parametrize(
        ("curve", "said"),
        [
            ([10.0] * 10 + [20.0] * 10 + [30.0] * 10, "rose: it went from about 10 to about 30."),
            ([10.0] * 10 + [30.0] * 20, "rose and then stayed as it was: it went from about 10 to about 30."),
            ([30.0] * 20 + [10.0] * 10, "fell: it went from about 30 to about 10."),
            ([24.0] * 10 + [24.5] * 20, "did not clearly change: it went from about 24 to about 24.5."),
        ],
    )
    def test_in_the_end_it_is_past(self, judge_curve: Any, curve: list[float], said: str) -> None:
        text = judge_curve(curve, JobStatus.COMPLETED).text
        assert text.startswith(f"The mean reward while training {said}")

    def test_a_rise_that_drowns_in_noise_is_not_claimed(self, judge_curve: Any) -> None:
        assert judge_curve(RISE + 3 * NOISE).state == "flat"
        assert judge_curve(30 * RISE + 3 * NOISE).state == "learning"

    @pytest.mark.parametrize("n_points", [12, 30, 200])
    def test_noise_alone_is_seldom_taken_for_anything_else(self, judge_curve: Any, n_points: int) -> None:
        states = [judge_curve(RNG.normal(0, 1, n_points)).state for _ in range(N_CURVES)]
        assert states.count("flat") > 0.9 * N_CURVES

    def test_averages_over_many_episodes_that_wander_are_not_taken_for_learning(self, judge_curve: Any) -> None:
        # Pendulum without any learning: rewards of about -1200 ± 250.
        states = [judge_curve(-1200 + 250 * smooth(RNG.normal(0, 1, 400))[::3]).state for _ in range(N_CURVES)]
        assert states.count("flat") > 0.9 * N_CURVES


def evaluate(mean_reward: float, std_reward: float = 0.0, n_episodes: int = 10, timesteps: int = 1000) -> EvaluationRow:
    """Make up an evaluation."""
    return EvaluationRow(
        timesteps=timesteps,
        elapsed_seconds=0.0,
        n_episodes=n_episodes,
        mean_reward=mean_reward,
        std_reward=std_reward,
        mean_reward_ci95=None,
        min_reward=mean_reward - std_reward,
        max_reward=mean_reward + std_reward,
        mean_length=1.0,
        success_rate=None,
        success_rate_ci95=None,
    )


class TestEvaluations:
    def test_two_of_them_go_before_what_rollouts_say(self, judge_curve: Any) -> None:
        assert judge_curve(100 * RISE, evaluations=[evaluate(50.0)] * 12).state == "flat"
        assert judge_curve(100 * RISE, evaluations=[evaluate(50.0)] * 2).state == "flat"
        assert judge_curve(100 * RISE, evaluations=[evaluate(50.0)]).state == "learning"

    def test_a_plateau_after_an_early_rise_is_not_called_getting_better(self, judge_curve: Any) -> None:
        pendulum = [-1112.0, -147.4, -151.3, -145.7, -149.0, -146.1, -148.2, -150.4, -146.6, -147.2]
        verdict = judge_curve([], evaluations=[evaluate(reward, 90.0) for reward in pendulum])
        assert verdict.state == "steady"
        assert "got better and stays as it is: it now earns -147.2 per episode, up from about" in verdict.text

    def test_a_few_are_compared_with_their_own_spread(self, judge_curve: Any) -> None:
        def get_state(*rewards: float, std_reward: float = 10.0, n_episodes: int = 10) -> str:
            state: str = judge_curve([], evaluations=[evaluate(x, std_reward, n_episodes) for x in rewards]).state
            return state

        # The standard error of a difference is 10 * sqrt(2 / 9) * (1 + 2.4 / 9) = 5.97, and 2.5 times that 14.9.
        assert (get_state(100.0, 114.8), get_state(100.0, 115.0)) == ("flat", "learning")
        assert get_state(100.0, 85.0) == "worse"
        assert get_state(20.0, *[150.0] * 7) == "learning"  # a few points are no plateau
        assert [get_state(20.0, *[150.0] * n) for n in (8, 10, 11)] == ["steady"] * 3
        assert get_state(20.0, *range(100, 180, 10)) == "learning"
        assert get_state(9.0, 10.0, std_reward=0.0, n_episodes=3) == "flat"
        assert get_state(9.0, 12.0, std_reward=0.0, n_episodes=3) == "learning"
        assert get_state(20.0, 100.0, 150.0) == "learning"
        assert get_state(20.0, 150.0, 100.0) == "worse"
        assert get_state(20.0, 300.0, std_reward=0.0, n_episodes=1) == "flat"

    def test_a_change_that_drowns_in_the_spread_is_not_called_none(self, judge_curve: Any) -> None:
        # Five episodes of -915 ± 900: the standard error of a difference is 900 * sqrt(2 / 4) * 1.6, far above 715.
        start, final = evaluate(-915.0, 900.0, n_episodes=5), evaluate(-200.0)
        verdict = judge_curve([], JobStatus.COMPLETED, evaluations=[start], final_evaluation=final)
        assert verdict.state == "flat"
        assert verdict.text.startswith("Its episodes differ too much to tell whether the policy changed: the saved one")

    def test_a_job_much_shorter_than_its_preset_is_told_to_train_for_longer(self) -> None:
        def advise(total_timesteps: int) -> str:
            config = make_plan(env_name="FrozenLake-v1", total_timesteps=total_timesteps).config
            silent = {"rollout/zero_std_group_fraction": 0.99}
            evaluations = [evaluate(0.0)] * 2
            return judge(Evidence(JobStatus.COMPLETED, config, 1, evaluations=evaluations, metrics=silent)).text

        preset = get_preset("FrozenLake-v1")
        assert preset is not None
        n_steps = preset.n_timesteps
        assert f"Its preset trains for {n_steps:,} steps, so try more total_timesteps than 2,000." in advise(2_000)
        assert "longer horizon" in advise(n_steps)

    def test_two_small_updates_are_no_reason_to_raise_the_learning_rate(self, config: TrainConfig) -> None:
        def judge_updates(n_updates: int) -> str:
            evaluations = [evaluate(20.0)] * 2
            return judge(Evidence(JobStatus.COMPLETED, config, 1, evaluations=evaluations, kls=[1e-7] * n_updates)).text

        assert "learning_rate" not in judge_updates(2)
        assert "try a higher learning_rate" in judge_updates(12)

    def test_the_saved_policy_decides_in_the_end(self, judge_curve: Any) -> None:
        curve = [evaluate(20.0 * i) for i in range(24)]
        end = {"status": JobStatus.COMPLETED, "evaluations": curve}
        assert judge_curve([], final_evaluation=evaluate(460.0), **end).state == "learning"
        fallen = judge_curve([], final_evaluation=evaluate(60.0), **end)
        assert fallen.state == "worse"
        assert "the saved one earns 60 per episode, down from about 230 at its best" in fallen.text

    def test_it_plays_other_episodes_so_that_a_little_more_is_no_progress(self, judge_curve: Any) -> None:
        # The same policy earns exactly the same in the same episodes.
        curve = [evaluate(9.2, 0.7)] * 24
        verdict = judge_curve([], JobStatus.COMPLETED, evaluations=curve, final_evaluation=evaluate(9.8, 0.7))
        assert verdict.state == "flat"

    def test_single_episodes_have_the_spread_of_their_curve(self, judge_curve: Any) -> None:
        curve = [evaluate(20.0 * i, n_episodes=1) for i in range(24)]
        final = evaluate(470.0, n_episodes=1)
        assert judge_curve([], JobStatus.COMPLETED, evaluations=curve, final_evaluation=final).state == "learning"

    def test_one_at_the_end_alone_is_told_and_not_judged(self, judge_curve: Any) -> None:
        verdict = judge_curve(100 * RISE, JobStatus.COMPLETED, final_evaluation=evaluate(77.0))
        assert verdict.state == "starting"
        assert verdict.text.startswith("The saved policy earns 77 per episode; too little was evaluated")


class TestSolved:
    def test_it_is_what_the_environment_calls_so(self, judge_curve: Any) -> None:
        over = judge_curve(500 * RISE, JobStatus.COMPLETED, reward_threshold=475.0)
        assert "while training, an episode earned about 500" in over.text
        verdict = judge_curve(500 * RISE, reward_threshold=475.0)
        assert verdict.state == "solved"
        assert "while training, an episode earns about 500" in verdict.text
        assert "475" in verdict.text
        assert judge_curve(400 * RISE, reward_threshold=475.0).state == "learning"
        assert judge_curve(500 * RISE).state == "learning"

    def test_an_evaluation_counts_and_of_several_the_one_that_is_saved(self, config: TrainConfig) -> None:
        def get_state(keep_best: bool, *rewards: float) -> str:
            kept = config.model_copy(update={"keep_best": keep_best})
            evaluations = [evaluate(reward) for reward in rewards]
            return judge(
                Evidence(JobStatus.RUNNING, kept, 1000, None, [500.0] * 12, evaluations, reward_threshold=475.0)
            ).state

        assert get_state(False, 480.0) == "solved"
        assert get_state(False, 480.0, 300.0) != "solved"
        assert get_state(True, 480.0, 300.0) == "solved"

    def test_one_before_training_says_nothing_of_the_policy(self, judge_curve: Any) -> None:
        untrained = [evaluate(143.2, timesteps=0)]
        verdict = judge_curve([500.0] * 12, evaluations=untrained, reward_threshold=475.0)
        assert verdict.state == "solved"
        assert "while training, an episode earns about 500" in verdict.text
        assert (
            judge_curve([20.0] * 12, evaluations=[evaluate(480.0, timesteps=0)], reward_threshold=475.0).state == "flat"
        )
        early = judge_curve([20.0], evaluations=untrained)
        assert (early.state, "has not been evaluated since training began" in early.text) == ("starting", True)

    def test_a_mean_that_may_be_luck_is_called_probable(self, judge_curve: Any) -> None:
        def get_text(low: float) -> str:
            figures = evaluate(479.4).model_copy(update={"mean_reward_ci95": (low, 500.0)})
            text: str = judge_curve([], evaluations=[figures], reward_threshold=475.0).text
            return text

        assert get_text(450.1).startswith("Probably solved: ")
        assert get_text(475.0).startswith("Solved: ")

    def test_the_last_word_is_that_of_the_saved_policy(self, judge_curve: Any) -> None:
        better = judge_curve(
            [200.0] * 12, JobStatus.COMPLETED, final_evaluation=evaluate(500.0), reward_threshold=475.0
        )
        assert better.text.startswith("Solved: the saved policy earns 500 per episode")
        worse = judge_curve([500.0] * 12, JobStatus.COMPLETED, final_evaluation=evaluate(300.0), reward_threshold=475.0)
        assert worse.state != "solved"

    def test_a_few_lucky_episodes_are_not_enough(self, judge_curve: Any) -> None:
        assert judge_curve([500.0] * 3, reward_threshold=475.0).state == "starting"


class TestWithoutASignal:
    def test_it_passes_the_warning_on(self, judge_curve: Any) -> None:
        verdict = judge_curve([-200.0] * 30, no_signal_warning="no signal in the last 12 rollouts; raise group_size.")
        assert verdict.state == "no_signal"
        assert "raise group_size" in verdict.text

    def test_what_is_solved_needs_none(self, judge_curve: Any) -> None:
        assert judge_curve([500.0] * 30, reward_threshold=475.0, no_signal_warning="no signal.").state == "solved"

    def test_what_was_learnt_before_the_signal_went_is_not_denied(self, judge_curve: Any) -> None:
        # A perfect policy earns the same in all branches.
        evidence = {"evaluations": [evaluate(9.0), *[evaluate(200.0)] * 20], "no_signal_warning": "no signal."}
        assert judge_curve([200.0] * 30, **evidence).state == "steady"

    def test_one_that_went_with_the_last_alternative_is_explained(self, judge_curve: Any) -> None:
        evidence = {"no_signal_warning": "no signal; raise it.", "metrics": {"train/entropy_loss": -0.001}}
        verdict = judge_curve([9.0] * 30, had_signal=True, **evidence)
        assert verdict.state == "no_signal"
        assert "lower learning_rate" in verdict.text
        assert "raise it" in judge_curve([9.0] * 30, had_signal=False, **evidence).text
        over = judge_curve([9.0] * 30, JobStatus.COMPLETED, had_signal=True, **evidence)
        assert over.text.startswith("In the end there was nothing more to learn from, since the policy had almost")

    def test_in_the_end_there_was_none(self, judge_curve: Any) -> None:
        evidence = {"final_evaluation": evaluate(-200.0), "evaluations": [evaluate(-200.0)] * 3}
        verdict = judge_curve([-200.0] * 30, JobStatus.COMPLETED, no_signal_warning="no signal.", **evidence)
        assert verdict.state == "no_signal"
        assert verdict.text.startswith("The saved policy earns -200 per episode. There was nothing to learn from")


@pytest.mark.parametrize(
    ("kls", "metrics", "said"),
    [
        ([0.3], {}, "lower learning_rate"),
        ([1e-7] * 4, {"train/entropy_loss": -0.6}, "higher learning_rate"),
        ([0.01], {"train/entropy_loss": -0.001}, "ent_coef"),
        ([0.01], {"train/entropy_loss": 0.5, "train/std": 0.1}, "total_timesteps"),
        ([0.01], {"rollout/zero_std_group_fraction": 0.95}, "all branches earn the same"),
        ([], {}, "total_timesteps"),
        # A learning rate that falls to 0 ends with small updates.
        ([1e-2, 1e-3, 1e-4, 1e-6, 1e-9], {"train/approx_kl": 1e-9}, "total_timesteps"),
    ],
)
def test_what_to_try_where_it_does_not_move_follows_from_the_updates(
    judge_curve: Any, kls: list[float], metrics: dict[str, float], said: str
) -> None:
    assert said in judge_curve([20.0] * 30, JobStatus.COMPLETED, kls=kls, metrics=metrics).text


@pytest.mark.parametrize(
    ("status", "ended_by", "said"),
    [
        (JobStatus.RUNNING, None, "Let it continue"),
        (JobStatus.COMPLETED, "total_timesteps", "more total_timesteps"),
        (JobStatus.COMPLETED, "max_seconds", "more max_seconds"),
        (JobStatus.STOPPED, "stop", "if it is resumed"),
        (JobStatus.STOPPED, "shutdown", "if it is resumed"),
        (JobStatus.COMPLETED, "stop_reward", "with a higher stop_reward"),
        (JobStatus.COMPLETED, "patience", "with more patience"),
    ],
)
@pytest.mark.parametrize("curve", [[20.0] * 30, list(20 + 100 * RISE)], ids=["flat", "rising"])
def test_more_time_is_advised_in_the_way_that_gives_it(
    judge_curve: Any, status: JobStatus, ended_by: EndedBy | None, said: str, curve: list[float]
) -> None:
    assert said in judge_curve(curve, status, ended_by=ended_by).text


@pytest.mark.parametrize("ended_by", ["stop", "shutdown"])
@pytest.mark.parametrize("curve", [[20.0] * 30, list(20 + 100 * RISE)], ids=["flat", "rising"])
def test_a_stop_after_the_last_step_took_none_away(config: TrainConfig, ended_by: EndedBy, curve: list[float]) -> None:
    n_steps = config.total_timesteps
    verdict = judge(Evidence(JobStatus.STOPPED, config, n_steps, ended_by, rollout_rewards=curve))
    assert "more total_timesteps" in verdict.text


def test_a_plateau_is_not_advised_a_reward_that_it_has(judge_curve: Any) -> None:
    def advise(silent: float, *rewards: float) -> str:
        evaluations, metrics = [evaluate(reward) for reward in rewards], {"rollout/zero_std_group_fraction": silent}
        text: str = judge_curve([], JobStatus.COMPLETED, evaluations=evaluations, metrics=metrics).text
        return text

    pendulum = [-1112.0, *[-139.1] * 10]
    assert advise(0.0, *pendulum).endswith(
        "That may be close to the best there is; it may still get better with more total_timesteps."
    )
    assert "a reward that differs" in advise(0.5, *pendulum)
    flat = [-1112.0] * 11
    assert advise(0.0, *flat).endswith("Try more total_timesteps, or a longer horizon with a larger n_steps.")
    assert "a reward that differs" in advise(0.5, *flat)


@pytest.mark.parametrize("is_evaluated", [True, False])
def test_a_fall_in_the_middle_of_training_is_no_alarm_unless_it_lasts(config: TrainConfig, is_evaluated: bool) -> None:
    rises = [20.0 * i for i in range(1, 13)]
    falls = [*rises, 150.0, 140.0, 130.0, 120.0, 110.0, 100.0]
    evaluations = [evaluate(reward, timesteps=300 * i) for i, reward in enumerate(falls)]
    curve = {"evaluations": evaluations} if is_evaluated else {"rollout_rewards": falls}

    def judge_it(status: JobStatus, total_timesteps: int, lr_schedule: str = "linear", metrics: Any = None) -> Verdict:
        changed = config.model_copy(update={"total_timesteps": total_timesteps, "lr_schedule": lr_schedule})
        return judge(Evidence(status, changed, 5_400, **curve, metrics=metrics or {}))

    early = judge_it(JobStatus.RUNNING, 20_000)
    assert early.state == "worse"
    assert early.text.startswith("Rewards have fallen since about step 3,300: ")
    assert early.text.endswith("Such dips are usual while a policy learns; keep_best saves the best policy.")
    for alarming in (
        judge_it(JobStatus.RUNNING, 6_000),
        judge_it(JobStatus.RUNNING, 20_000, "constant"),
        judge_it(JobStatus.COMPLETED, 20_000),
        judge_it(JobStatus.RUNNING, 20_000, metrics={"train/entropy_loss": -0.001}),
    ):
        assert alarming.state == "worse"
        assert "may prevent that" in alarming.text


@pytest.mark.parametrize(
    ("lr_schedule", "said"), [("constant", 'lr_schedule "linear"'), ("linear", "lower learning_rate")]
)
def test_where_it_fell_a_learning_rate_that_falls_already_is_not_advised(
    config: TrainConfig, lr_schedule: str, said: str
) -> None:
    changed = config.model_copy(update={"lr_schedule": lr_schedule})
    assert said in judge(
        Evidence(JobStatus.COMPLETED, changed, 1000, rollout_rewards=list(120 - 100 * RISE))
    ).text.replace("A l", "l")


def test_once_the_saved_policy_was_evaluated_training_is_over_though_the_job_still_runs(config: TrainConfig) -> None:
    falling = config.model_copy(update={"lr_schedule": "linear", "total_timesteps": 128})
    evaluations = [evaluate(20.0, 1.0, timesteps=100)]
    verdict = judge(
        Evidence(JobStatus.RUNNING, falling, 128, evaluations=evaluations, final_evaluation=evaluate(9.0, 1.0))
    )
    assert verdict.state == "worse"
    assert verdict.text.startswith("The policy got worse: the saved one earns 9 per episode")


@pytest.mark.parametrize("status", JobStatus)
@pytest.mark.parametrize("step", [10.0, 0.0, -10.0], ids=["rising", "flat", "falling"])
def test_whatever_is_known_there_is_a_verdict(config: TrainConfig, status: JobStatus, step: float) -> None:
    curve = [200.0 + step * i for i in range(13)]
    rows = [evaluate(reward, 1.0, timesteps=10 * i) for i, reward in enumerate(curve)]
    n_evaluations, finals, n_rollouts = (0, 1, 2, 12, 13), (None, evaluate(curve[-1], 1.0)), (0, 12)
    warnings, schedules = (None, "All branches earn the same."), ("constant", "linear")
    for n, final, m, warning, schedule in itertools.product(n_evaluations, finals, n_rollouts, warnings, schedules):
        verdict = judge(
            Evidence(
                status,
                config.model_copy(update={"lr_schedule": schedule}),
                130,
                rollout_rewards=curve[:m],
                evaluations=rows[:n],
                final_evaluation=final,
                no_signal_warning=warning,
            )
        )
        assert verdict.state in get_args(VerdictState)
        assert verdict.text.endswith(".")
