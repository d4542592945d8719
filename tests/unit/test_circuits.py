"""The pure machine: by example, and against a plain model in any order of events."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dramatiq_chaperone import circuits
from dramatiq_chaperone.circuits import Circuit, Outcome, Permit, Policy, Result, Step
from dramatiq_chaperone.events import CircuitBreakerClosed, CircuitBreakerHalfOpened, CircuitBreakerModeChanged, CircuitBreakerOpened

T0 = 1_790_000_000.0
POLICY = Policy(failure_threshold=3, success_threshold=2, timeout=60, half_open_attempts=2)


def failure(permit: Permit | None = None, successes: int = 0) -> Outcome:
    return Outcome(Result.FAILURE, permit, successes, 0.0 if successes else None, "OSError: no")


def success(permit: Permit | None = None, number: int = 1) -> Outcome:
    return Outcome(Result.SUCCESS, permit, number)


def run(circuit: Circuit, *outcomes: Outcome, now: float = T0, policy: Policy = POLICY) -> Circuit:
    for outcome in outcomes:
        circuit = circuits.record(circuit, policy, outcome, now).circuit
    return circuit


def opened(policy: Policy = POLICY) -> Circuit:
    circuit = run(circuits.new_circuit(T0), *[failure()] * 3, policy=policy)
    assert circuit.state == "open"
    return circuit


def trial(circuit: Circuit, now: float, policy: Policy = POLICY, name: str = "p") -> Step:
    return circuits.acquire(circuit, policy, name, now)


def test_it_opens_at_the_threshold_and_not_one_before() -> None:
    circuit = run(circuits.new_circuit(T0), failure(), failure())
    assert (circuit.state, circuit.failures) == ("closed", 2)
    step = circuits.record(circuit, POLICY, failure(), T0 + 5)
    assert (step.circuit.state, step.entered) == ("open", ("open",))
    assert (step.circuit.opened_at, step.circuit.reopens_at, step.circuit.last_error) == (T0 + 5, T0 + 65, "OSError: no")


def test_a_success_begins_the_count_anew_also_one_that_a_failure_brings_along() -> None:
    assert run(circuits.new_circuit(T0), failure(), failure(), success(), failure()).failures == 1
    assert run(circuits.new_circuit(T0), failure(), failure(), failure(successes=1)).failures == 1
    told_elsewhere = Outcome(Result.FAILURE, success_age_s=0.0)
    assert run(circuits.new_circuit(T0), failure(), failure(), told_elsewhere).failures == 1
    before_them = Outcome(Result.FAILURE, success_age_s=0.5)
    assert run(circuits.new_circuit(T0), failure(), failure(), before_them).failures == 3, "another process failed after that success"


def test_it_lets_trials_through_at_the_second_not_before() -> None:
    circuit = opened()
    assert not trial(circuit, T0 + 59.9).is_admitted
    step = trial(circuit, T0 + 60)
    assert (step.is_admitted, step.circuit.state, step.entered) == (True, "half_open", ("half_open",))
    assert step.permit == Permit("p", step.circuit.phase)


def test_only_so_many_trials_at_once() -> None:
    first = trial(opened(), T0 + 60, name="a")
    second = trial(first.circuit, T0 + 61, name="b")
    assert second.is_admitted
    third = trial(second.circuit, T0 + 62, name="c")
    assert not third.is_admitted
    assert not third.is_changed
    ended = circuits.record(second.circuit, POLICY, Outcome(Result.NEITHER, first.permit), T0 + 62).circuit
    assert trial(ended, T0 + 62, name="c").is_admitted


def test_trials_that_succeed_close_it() -> None:
    first = trial(opened(), T0 + 60, name="a")
    second = trial(first.circuit, T0 + 60, name="b")
    one = circuits.record(second.circuit, POLICY, success(first.permit), T0 + 61)
    assert (one.circuit.state, one.circuit.successes, one.entered) == ("half_open", 1, ())
    two = circuits.record(one.circuit, POLICY, success(second.permit), T0 + 62)
    assert (two.circuit.state, two.circuit.failures, two.circuit.openings, two.entered) == ("closed", 0, 0, ("closed",))


def test_a_trial_that_fails_opens_it_again() -> None:
    first = trial(opened(), T0 + 60, name="a")
    step = circuits.record(first.circuit, POLICY, failure(first.permit), T0 + 61)
    assert (step.circuit.state, step.circuit.opened_at, step.circuit.permits) == ("open", T0 + 61, ())


def test_a_call_from_before_the_opening_says_nothing_now() -> None:
    half_open = trial(opened(), T0 + 60).circuit
    assert run(half_open, failure(), now=T0 + 61).state == "half_open"
    assert run(opened(), failure(), now=T0 + 30).reopens_at == T0 + 60
    old = Permit("old", 1)
    assert run(half_open, success(old), success(old), failure(old), now=T0 + 61).state == "half_open"


def test_the_permit_of_a_process_that_died_comes_back() -> None:
    policy = POLICY._replace(half_open_attempts=1, max_wait_duration_in_half_open_state=10)
    first = trial(opened(), T0 + 60, policy, "dead")
    assert not trial(first.circuit, T0 + 69, policy, "b").is_admitted
    second = trial(first.circuit, T0 + 70, policy, "b")
    assert second.is_admitted
    late = circuits.record(second.circuit, policy, failure(first.permit), T0 + 75).circuit
    assert late.state == "open", "it was only slow, and says how the service is"


def test_a_rate_over_a_window() -> None:
    policy = Policy(failure_threshold=None, failure_rate_threshold=50, sliding_window_size=10, minimum_number_of_calls=6)
    half = [failure(successes=1)] * 2
    circuit = run(circuits.new_circuit(T0), *half, policy=policy)
    assert (circuit.state, circuit.window, circuit.failure_rate) == ("closed", "0101", 50)
    assert run(circuit, failure(successes=1), policy=policy).state == "open"
    many = run(circuits.new_circuit(T0), success(number=1000), *[failure()] * 4, policy=policy)
    assert (many.state, many.window) == ("closed", "0000001111")
    assert run(many, failure(), policy=policy).state == "open"


def test_both_rules_at_once() -> None:
    policy = Policy(failure_threshold=3, failure_rate_threshold=90, sliding_window_size=100, minimum_number_of_calls=100)
    assert run(circuits.new_circuit(T0), *[failure()] * 3, policy=policy).state == "open"


def test_the_wait_grows_while_trials_fail_and_is_jittered() -> None:
    policy = POLICY._replace(exponential_backoff_multiplier=2, exponential_max_wait_duration_in_open_state=200, randomized_wait_factor=0.5)
    assert [policy.wait_s(n, 0.5) for n in (1, 2, 3, 4)] == [60, 120, 200, 200]
    assert (policy.wait_s(1, 0.0), policy.wait_s(1, 1.0)) == (30, 90)
    assert policy.wait_s(100_000, 0.5) == 200
    circuit = opened(policy)
    again = trial(circuit, T0 + 60, policy)
    circuit = run(again.circuit, failure(again.permit), now=T0 + 60, policy=policy)
    assert circuit.reopens_at == T0 + 60 + 120


@pytest.mark.parametrize(("order", "mode"), [("disable", "disabled"), ("metrics_only", "metrics_only"), ("force_open", "forced_open")])
def test_modes_hold_until_auto(order: str, mode: str) -> None:
    circuit = circuits.order(opened(), POLICY, order, T0).circuit
    assert circuit.mode == mode
    assert trial(circuit, T0 + 1).is_admitted == (mode != "forced_open")
    assert not trial(circuit, T0 + 1000).entered
    assert run(circuit, *[failure()] * 10).mode == mode
    again = circuits.order(circuit, POLICY, "auto", T0 + 2)
    assert (again.circuit.mode, again.circuit.state, again.circuit.failures) == ("auto", "closed", 0)
    assert not circuits.order(again.circuit, POLICY, "auto", T0 + 3).is_changed


def test_metrics_only_counts_and_disabled_does_not() -> None:
    counting = circuits.order(circuits.new_circuit(T0), POLICY, "metrics_only", T0).circuit
    found = run(counting, *[failure()] * 5)
    assert (found.state, found.failures) == ("closed", 5)
    off = circuits.order(circuits.new_circuit(T0), POLICY, "disable", T0).circuit
    assert run(off, *[failure()] * 5) == off


def test_orders() -> None:
    circuit = run(circuits.new_circuit(T0), failure(), failure())
    by_hand = circuits.order(circuit, POLICY, "open", T0 + 1)
    assert (by_hand.circuit.state, by_hand.circuit.failures, by_hand.entered) == ("open", 2, ("open",))
    assert not circuits.order(by_hand.circuit, POLICY, "open", T0 + 1).is_changed
    closed = circuits.order(by_hand.circuit, POLICY, "close", T0 + 1).circuit
    assert (closed.state, closed.failures, closed.opened_at) == ("closed", 2, None)
    reset = circuits.order(by_hand.circuit, POLICY, "reset", T0 + 1).circuit
    assert (reset.state, reset.failures, reset.last_failure_at, reset.last_error) == ("closed", 0, None, None)
    assert circuits.order(by_hand.circuit, POLICY, "half_open", T0 + 1).circuit.state == "half_open"
    with pytest.raises(ValueError, match="none of"):
        circuits.order(circuit, POLICY, "opne", T0)


def test_what_others_tell_of_their_successes() -> None:
    failing = run(circuits.new_circuit(T0), failure(), failure())
    assert circuits.told(failing, 3, T0 + 1, 0).circuit.failures == 0
    older = circuits.told(failing, 3, T0 - 1, 0)
    assert older.circuit.failures == 2, "they were before the failures"
    fresh = circuits.told(circuits.new_circuit(T0), 3, T0, 0).circuit
    assert fresh.last_success_at == T0
    assert not circuits.told(fresh, 3, T0 + 1, 0).is_changed, "a row is not written each second for that"
    assert circuits.told(fresh, 3, T0 + 61, 0).is_changed
    assert circuits.told(fresh, 3, T0 + 1, 5).circuit.window == "000"
    assert circuits.told(opened(), 3, T0 + 1, 0).circuit.state == "open"


def test_events() -> None:
    step = circuits.record(run(circuits.new_circuit(T0), failure(), failure()), POLICY, failure(), T0)
    (event,) = circuits.events_of("mail", step, T0)
    assert isinstance(event, CircuitBreakerOpened)
    assert (event.service, event.failure_count, event.last_error, event.opened_at.timestamp()) == ("mail", 3, "OSError: no", T0)
    assert isinstance(circuits.events_of("mail", trial(step.circuit, T0 + 60), T0 + 60)[0], CircuitBreakerHalfOpened)
    assert isinstance(circuits.events_of("mail", circuits.order(step.circuit, POLICY, "reset", T0), T0)[0], CircuitBreakerClosed)
    (mode,) = circuits.events_of("mail", circuits.order(step.circuit, POLICY, "disable", T0), T0)
    assert isinstance(mode, CircuitBreakerModeChanged)
    assert (mode.mode, mode.previous_mode) == ("disabled", "auto")


def test_as_text_and_back() -> None:
    circuit = replace(trial(opened(), T0 + 60.125).circuit, window="0101", last_error="é\u2028")
    assert circuits.from_json(circuits.to_json(circuit)) == circuit
    assert circuits.from_json('{"state": "open", "of_a_later_release": 1}').state == "open"


class AgainstAModel(RuleBasedStateMachine):
    """The model: lists and plain numbers, nothing clever."""

    @initialize(
        threshold=st.integers(1, 4),
        successes=st.integers(1, 3),
        attempts=st.integers(1, 3),
        timeout=st.integers(0, 5),
        wait=st.integers(1, 5),
    )
    def begin(self, threshold: int, successes: int, attempts: int, timeout: int, wait: int) -> None:
        self.policy = Policy(threshold, successes, timeout, attempts, wait)
        self.now = T0
        self.circuit = circuits.new_circuit(T0)
        self.state, self.row, self.good, self.until = "closed", 0, 0, 0.0
        self.mode = "auto"
        #: Trials of this phase, with when they run out; and of earlier ones.
        self.trials: dict[Permit, float] = {}
        self.late: list[Permit] = []

    def take(self, step: Step) -> Step:
        assert (step.circuit.version > self.circuit.version) == step.is_changed
        self.circuit = step.circuit
        return step

    def opens(self) -> None:
        self.state, self.until = "open", self.now + self.policy.timeout
        self.forget_trials()

    def forget_trials(self) -> None:
        self.late += self.trials
        self.trials, self.good = {}, 0

    @rule(seconds=st.integers(0, 4))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(before=st.integers(0, 2))
    def a_free_call_fails(self, before: int) -> None:
        self.take(circuits.record(self.circuit, self.policy, failure(successes=before), self.now))
        if self.state == "closed" and self.mode in {"auto", "metrics_only"}:
            self.row = 1 if before else self.row + 1
            if self.row >= self.policy.failure_threshold and self.mode == "auto":  # type: ignore[operator]  # it is a number here
                self.opens()

    @rule(number=st.integers(1, 3))
    def free_calls_succeed(self, number: int) -> None:
        self.take(circuits.told(self.circuit, number, self.now, 0))
        if self.state == "closed" and self.mode != "disabled":
            self.row = 0

    @rule()
    def a_call_asks(self) -> None:
        step = self.take(circuits.acquire(self.circuit, self.policy, f"p{self.circuit.version}-{self.now}", self.now))
        if self.mode != "auto":
            assert step.is_admitted == (self.mode != "forced_open")
            return
        if self.state == "open" and self.now >= self.until:
            self.state, self.good = "half_open", 0
        running = [until for until in self.trials.values() if until > self.now]
        expected = self.state == "closed" or (self.state == "half_open" and len(running) < self.policy.half_open_attempts)
        assert step.is_admitted == expected
        assert (step.permit is not None) == (expected and self.state == "half_open")
        if step.permit is not None:
            self.trials[step.permit] = self.now + self.policy.max_wait_duration_in_half_open_state

    @rule(data=st.data(), result=st.sampled_from(list(Result)))
    def a_trial_ends(self, data: st.DataObject, result: Result) -> None:
        known = [*self.trials, *self.late]
        if not known:
            return
        permit = data.draw(st.sampled_from(known))
        is_late = permit not in self.trials
        self.take(circuits.record(self.circuit, self.policy, Outcome(result, permit, error="E"), self.now))
        if is_late:
            self.late.remove(permit)
            # A failure of an earlier phase is like that of a call that was let through freely.
            if result is Result.FAILURE and self.state == "closed" and self.mode in {"auto", "metrics_only"}:
                self.row += 1
                if self.row >= self.policy.failure_threshold and self.mode == "auto":  # type: ignore[operator]  # as above
                    self.opens()
            return
        del self.trials[permit]
        if self.mode != "auto":
            return
        if result is Result.FAILURE:
            self.row += 1
            self.opens()
        elif result is Result.SUCCESS:
            self.good += 1
            if self.good >= self.policy.success_threshold:
                self.state, self.row = "closed", 0
                self.forget_trials()

    @rule(what=st.sampled_from([*circuits.ORDERS, *circuits.MODE_ORDERS]))
    def somebody_orders(self, what: str) -> None:
        before = self.state
        self.take(circuits.order(self.circuit, self.policy, what, self.now))
        if what in circuits.MODE_ORDERS:
            mode = circuits.MODE_ORDERS[what]
            if mode == self.mode:
                return
            self.mode = mode
            if mode == "auto":
                self.state, self.row = "closed", 0
                self.forget_trials()
            return
        if what == "open" and before != "open":
            self.opens()
        elif what == "half_open" and before != "half_open":
            self.state = "half_open"
            self.forget_trials()
        elif (what == "close" and before != "closed") or what == "reset":
            self.state = "closed"
            self.row = 0 if what == "reset" else self.row
            self.forget_trials()

    @invariant()
    def they_agree(self) -> None:
        if hasattr(self, "circuit"):
            assert (self.circuit.state, self.circuit.mode, self.circuit.failures) == (self.state, self.mode, self.row)
            if self.state == "half_open" and self.mode == "auto":
                assert self.circuit.successes == self.good
            assert circuits.from_json(circuits.to_json(self.circuit)) == self.circuit


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
