"""Alarms: detect a failing run from its own metrics, with the evidence and a suggestion.

Every alarm is a function of the lines of ``metrics.jsonl`` so far. A resumed run therefore raises the same alarms at
the same steps. A raised alarm stays active until its number is back within the limit by :data:`SLACK`; after that it
can be raised again. "At the start" means the first ``window`` steps, "now" the last.

The expected mean of importance ratios is 1 however far apart two policies are, so that alarm also checks the share of
clipped tokens. A teacher counts as worse if its context does not separate right from wrong: its mean u on correct
completions is not above that on wrong ones. A teacher that samples itself is compared by the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from selfdistill.config.sections import AlarmsConfig
from selfdistill.tracking.history import History

SLACK = 0.1
"""Hysteresis: an alarm clears when its number is back within the limit by this share of the limit."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One raised alarm: a line of ``alarms.jsonl``."""

    name: str
    step: int
    evidence: str
    suggestion: str

    def to_json(self) -> dict[str, Any]:
        """Return the alarm as plain JSON."""
        return asdict(self)

    def message(self) -> str:
        """Return the alarm as a sentence for the terminal."""
        return f"alarm {self.name}, step {self.step}: {self.evidence}; {self.suggestion}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A number and its limit. The number is too large at the limit or above; with ``low``, too small at or below it."""

    value: float
    limit: float
    evidence: str
    low: bool = False
    slack: float | None = None

    @property
    def triggers(self) -> bool:
        """Whether the number is at the limit or beyond it."""
        return self.value <= self.limit if self.low else self.value >= self.limit

    @property
    def clears(self) -> bool:
        """Whether the number is back within the limit by more than the slack."""
        slack = SLACK * abs(self.limit) if self.slack is None else self.slack
        return self.value > self.limit + slack if self.low else self.value < self.limit - slack


@dataclass(frozen=True, slots=True)
class Rule:
    """The definition of an alarm: its condition in words, the function that computes its reading, its suggestion."""

    about: str
    read: Callable[[History, AlarmsConfig], Reading | None]
    suggestion: str


class AlarmWatch:
    """Checks all alarms of a run, line by line."""

    def __init__(
        self, config: AlarmsConfig, *, right: str = "with the verifier's full reward of 1", by: str = "success"
    ) -> None:
        """``right`` says when a completion is right, and ``by`` is the metric that chooses the best checkpoint."""
        self.config = config
        self.history = History(right, by)
        self.active: set[str] = set()
        self.raised: tuple[Alarm, ...] = ()
        """The alarms that the newest line raised."""

    def update(self, line: Mapping[str, Any]) -> tuple[Alarm, ...]:
        """Add a line and return the alarms that it raises. ``active`` then holds the names of all active alarms."""
        self.history.add(line, window=self.config.window)
        raised = []
        for name, rule in ALARMS.items():
            reading = rule.read(self.history, self.config)
            if reading is None:
                continue
            if name in self.active:
                if reading.clears:
                    self.active.remove(name)
            elif reading.triggers:
                self.active.add(name)
                raised.append(Alarm(name, self.history.step, reading.evidence, rule.suggestion))
        self.raised = tuple(raised)
        return self.raised


def _entropy(who: str) -> Callable[[History, AlarmsConfig], Reading | None]:
    def read(history: History, at: AlarmsConfig) -> Reading | None:
        numbers = history.of(f"{who}_entropy", least=2 * at.window)
        start, recent = _ends(numbers, at.window)
        if not start:
            return None
        evidence = (
            f"mean entropy of the {who} over {_last(at.window)} is {recent:z.4f} nats a token, "
            f"{recent / start:.0%} of {start:z.4f} at the start (limit {at.entropy:.0%})"
        )
        return Reading(recent, at.entropy * start, evidence, low=True)

    return read


def _entropy_rise(history: History, at: AlarmsConfig) -> Reading | None:
    # Against the first step: a model can become noise within a few steps, which a mean of them would hide.
    if not (numbers := history.of("student_entropy", least=at.window + 1)):
        return None
    rise = fmean(numbers[-at.window :]) - numbers[0]
    above = f"{rise:z.4f} nats a token above the first step's {numbers[0]:z.4f} (limit {at.entropy_rise:g})"
    return Reading(rise, at.entropy_rise, f"mean entropy of the student over {_last(at.window)} is {above}")


def _length(*, growth: bool) -> Callable[[History, AlarmsConfig], Reading | None]:
    def read(history: History, at: AlarmsConfig) -> Reading | None:
        start, recent = _ends(history.of("length", least=2 * at.window), at.window)
        if not start:
            return None
        limit = at.length_growth if growth else at.length_fall
        evidence = (
            f"completions of {_last(at.window)} have {recent:z.1f} tokens on average, "
            f"{recent / start:z.2f} × the {start:z.1f} at the start (limit {limit:g} ×)"
        )
        return Reading(recent, limit * start, evidence, low=not growth)

    return read


def _turns(history: History, at: AlarmsConfig) -> Reading | None:
    start, recent = _ends(history.of("turns", least=2 * at.window), at.window)
    if start <= 1:
        return None
    evidence = (
        f"episodes of the last {at.window} steps have {recent:.2f} turns on average, {start:.2f} at the start "
        f"(limit: {at.turns_fall:.0%} of the turns after the first)"
    )
    return Reading(recent - 1, at.turns_fall * (start - 1), evidence, low=True)


def _deliberation(history: History, at: AlarmsConfig) -> Reading | None:
    start, recent = _ends(history.of("deliberation", least=2 * at.window), at.window)
    if not start:
        return None
    evidence = (
        f"{recent:z.2f} deliberation words a completion over {_last(at.window)}, "
        f"{recent / start:.0%} of {start:z.2f} at the start (limit {at.deliberation:.0%})"
    )
    return Reading(recent, at.deliberation * start, evidence, low=True)


def _share(key: str, name: str, words: str) -> Callable[[History, AlarmsConfig], Reading | None]:
    def read(history: History, at: AlarmsConfig) -> Reading | None:
        numbers = history.of(key, least=at.window)
        if not numbers:
            return None
        limit: float = getattr(at, name)
        recent = fmean(numbers[-at.window :])
        return Reading(recent, limit, f"{recent:.0%} of {words} over {_last(at.window)} (limit {limit:.0%})")

    return read


def _ratio(history: History, at: AlarmsConfig) -> Reading | None:
    ratios, clipped = history.of("ratio"), history.of("clip_share")
    readings = []
    if ratios:
        evidence = f"the mean importance ratio of the step is {ratios[-1]:z.4f} (limit 1 ± {at.ratio:g})"
        readings.append(Reading(abs(ratios[-1] - 1), at.ratio, evidence))
    if clipped:
        evidence = f"{clipped[-1]:.0%} of the tokens left the clip range of importance ratios (limit {at.clipped:.0%})"
        readings.append(Reading(clipped[-1], at.clipped, evidence))
    # The alarm clears only when both are back within their limits, so return the reading closer to its limit.
    return max(readings, key=lambda reading: reading.value / reading.limit, default=None)


def _success(history: History, at: AlarmsConfig) -> Reading | None:
    names = ("success", "reward_low", "reward_high")
    shares, lows, highs = (history.of(name, least=at.no_success)[-at.no_success :] for name in names)
    if not (shares and lows and highs):
        return None
    # Rewards that differ although no completion is right, or every one, are graded on another scale than success is.
    stuck = min(lows) < max(highs) and (not any(shares) or min(shares) == 1)
    evidence = (
        f"over {_last(at.no_success)} {'every' if shares[-1] else 'no'} completion is right, which it is "
        f"{history.right}, while rewards go from {min(lows):.4g} to {max(highs):.4g}"
    )
    return Reading(float(stuck), 1.0, evidence)


def _sampler(history: History, at: AlarmsConfig) -> Reading | None:
    numbers = history.of("sampler_gap", least=at.window)
    if not numbers:
        return None
    recent = fmean(numbers[-at.window :])
    evidence = (
        f"over {_last(at.window)} the learner's log-probabilities differ from the sampler's by {recent:z.4f} "
        f"nats a token (limit {at.sampler_gap:g})"
    )
    return Reading(recent, at.sampler_gap, evidence)


def _teacher(history: History, at: AlarmsConfig) -> Reading | None:
    teacher_rewards, rewards = history.of("teacher_reward", least=at.window), history.of("reward", least=at.window)
    if teacher_rewards and rewards:
        teacher, student = fmean(teacher_rewards[-at.window :]), fmean(rewards[-at.window :])
        evidence = (
            f"over {_last(at.window)} the teacher's own completions earn {teacher:z.3f}, the student's "
            f"{student:z.3f} (limit {at.reward_gap:g} more than the teacher's)"
        )
        return Reading(student - teacher, at.reward_gap, evidence)
    right, wrong = history.of("u_correct", least=at.window), history.of("u_wrong", least=at.window)
    if not right or not wrong:
        return None
    correct, incorrect = fmean(right[-at.window :]), fmean(wrong[-at.window :])
    evidence = (
        f"over {_last(at.window)} the context adds {correct:+z.4f} nats a token to correct completions and "
        f"{incorrect:+z.4f} to wrong ones (limit {at.u_gap:g} apart)"
    )
    # The limit may be 0, so the slack cannot be a share of it.
    return Reading(correct - incorrect, at.u_gap, evidence, low=True, slack=SLACK * abs(incorrect))


def _gradient(history: History, at: AlarmsConfig) -> Reading | None:
    numbers = history.of("grad_norm", least=2 * at.window + 1)
    usual = median(numbers[-4 * at.window - 1 : -1]) if numbers else 0.0
    if not usual:
        return None
    evidence = (
        f"gradient norm {numbers[-1]:.4g} is {numbers[-1] / usual:z.1f} × the median {usual:.4g} "
        f"of the steps before (limit {at.gradient:g} ×)"
    )
    return Reading(numbers[-1], at.gradient * usual, evidence)


def _moved(history: History, at: AlarmsConfig) -> Reading | None:
    rates = history.of("learning_rate")
    # At the end of a schedule (a tenth of the peak rate or less), updates that round to zero are expected.
    if rates and rates[-1] <= 0.1 * max(rates):
        return None
    readings = []
    for key, whose in (("moved", "weights with a gradient"), ("average_moved", "averaged weights behind the student")):
        numbers = history.of(key, least=at.window)
        if numbers:
            recent = fmean(numbers[-at.window :])
            evidence = f"updates of {_last(at.window)} changed {recent:.2%} of the {whose} (limit {at.moved:.0%})"
            readings.append(Reading(recent, at.moved, evidence, low=True))
    return min(readings, key=lambda reading: reading.value, default=None)


def _validation(history: History, at: AlarmsConfig) -> Reading | None:
    if not history.new("evaluation") or len(history.evaluations) < 2:
        return None
    *earlier, recent = history.evaluations
    told = history.told
    best = max(earlier, key=lambda evaluation: evaluation.levels[told][0])
    (before, _), (now, high) = best.levels[told], recent.levels[told]
    start = history.of("reward")[: at.window]
    reward = best.reward if best.reward is not None else fmean(start) if start else None
    if reward is None or recent.reward is None:
        return None
    evidence = (
        f"held-out {told} fell from {before:z.3f} at step {best.step} to {now:z.3f} (upper end {high:z.3f}) while the "
        f"training reward rose from {reward:z.3f} to {recent.reward:z.3f} (limit {at.validation:g})"
    )
    # A fall within the interval, or together with a falling reward, is not overfitting.
    fell = high < before and recent.reward > reward
    return Reading(before - now if fell else 0.0, at.validation, evidence)


def _ends(numbers: list[float], window: int) -> tuple[float, float]:
    """Return the means of the first and of the last window; zeros if there are no numbers."""
    return (fmean(numbers[:window]), fmean(numbers[-window:])) if numbers else (0.0, 0.0)


ALARMS: Mapping[str, Rule] = {
    "entropy_collapse": Rule(
        "the student's entropy falls to a small share of what it was",
        _entropy("student"),
        "lower the learning rate or the strength of the teacher's signal, or sample at a higher temperature",
    ),
    "entropy_explosion": Rule(
        "the student's entropy rises far above what it was",
        _entropy_rise,
        "look whether the latest completions are noise; lower the learning rate or the signal, or the divergence",
    ),
    "teacher_entropy_collapse": Rule(
        "the teacher's entropy falls to a small share of what it was",
        _entropy("teacher"),
        'the teacher follows the student into a corner: freeze it (method.weights = "frozen") or average it more '
        "slowly (method.teacher_rate)",
    ),
    "length_explosion": Rule(
        "completions grow to a multiple of what they were",
        _length(growth=True),
        "look at the latest completions for repetition; weigh completions rather than tokens, or lower the signal",
    ),
    "length_shrinkage": Rule(
        "completions shrink to a fraction of what they were",
        _length(growth=False),
        "the signal may punish thinking aloud: compare u by kind of token, or use a method that keeps deliberation",
    ),
    "deliberation_vanishing": Rule(
        "words of deliberation disappear from the completions",
        _deliberation,
        "a teacher that knows the answer need not hesitate, and the student learns that: compare with antisd or grpo",
    ),
    "reference_leak": Rule(
        "completions mention a reference that they never saw",
        _share("leak", "leak", "the completions mention a reference, such as a given solution, that they never saw"),
        "the student cites what its teacher saw: look at the completions, reword the context, or compare with grpo",
    ),
    "truncated_completions": Rule(
        "many completions are cut by the token limit",
        _share("truncated", "truncated", "the completions were cut by the token limit"),
        "raise sampling.max_tokens, or look at the latest completions for repetition",
    ),
    "unended_episodes": Rule(
        "many episodes are not ended by their environment",
        _share("unended", "unended", "the episodes were not ended by their environment"),
        'see "ended" in metrics.jsonl for the reasons: raise the limit of turns or of tokens, or mend the environment',
    ),
    "tool_errors": Rule(
        "many turns are answered with an error",
        _share("tool_errors", "tool_errors", "the turns were answered with an error"),
        "look at the latest episodes: the model may not know how calls are written, or the tools may fail",
    ),
    "turns_shrinking": Rule(
        "episodes shrink to a single turn",
        _turns,
        "if success does not rise, the model gives up or answers without asking: look at the latest episodes, and "
        "compare what a later turn can earn",
    ),
    "skipped_completions": Rule(
        "many completions are left out of the loss",
        _share("left_out", "skipped", "the completions were left out of the loss"),
        'see "skipped" in metrics.jsonl for the reasons; draw more completions a problem, or choose another context',
    ),
    "no_signal": Rule(
        "many groups teach nothing",
        _share("no_signal", "no_signal", "the groups taught nothing"),
        "choose problems that are neither always nor never solved, or draw more completions a problem",
    ),
    "no_success": Rule(
        "rewards are graded, and no completion counts as right, or every one does",
        _success,
        "set reward.success to the reward from which on a completion is right, or read the reward instead of accuracy",
    ),
    "importance_ratios": Rule(
        "the policy that is trained has left the one that sampled",
        _ratio,
        "lower the learning rate or optimiser.updates_per_batch, and check that sampler and learner score alike",
    ),
    "sampler_gap": Rule(
        "the engine that samples and the learner disagree on the same tokens",
        _sampler,
        "look whether the engine holds the learner's weights (a CPU server: sampler.worker_extension), and compare "
        "number types and kernels; with sampler.overlap lower the learning rate",
    ),
    "teacher_worse": Rule(
        "what the teacher knows does not help",
        _teacher,
        "look at the rendered prompts (selfdistill contexts) and measure the teacher (selfdistill teachers)",
    ),
    "gradient_jump": Rule(
        "the gradient norm jumps",
        _gradient,
        "look at this step's completions; lower optimiser.clip_norm or the learning rate if it happens again",
    ),
    "vanishing_updates": Rule(
        "updates round to nothing: few of the weights that should move do",
        _moved,
        "train float32 weights (a loop of your own has them after Policy.place), or raise the learning rate",
    ),
    "validation_falls": Rule(
        "held-out accuracy, or the mean reward of graded tasks, falls while the training reward rises",
        _validation,
        "the run overfits its problems or its reward: stop here and keep the best checkpoint",
    ),
}
"""All alarms, by the names that ``stop_on`` accepts."""


def _last(steps: int) -> str:
    return "the last step" if steps == 1 else f"the last {steps} steps"
