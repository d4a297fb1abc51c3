"""The state machine, driven by a clock of the test's own."""

from collections.abc import Callable

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox import Result
from sandbox.supervise import (
    Restart,
    ServiceExited,
    ServiceGaveUp,
    ServiceReady,
    ServiceRestarting,
    ServiceStarted,
    State,
)
from sandbox.supervise.actions import Force, Forget, Kill, Launch, Probe, Signal, Swap
from sandbox.supervise.machine import DEBOUNCE, FORCE_AFTER, Machine
from sandbox.supervise.model import RUNNING, ServiceEvent, Settings

SIGTERM, SIGABRT, SIGHUP = 15, 6, 1


def result(status: int = 0) -> Result[bytes]:
    return Result(["x"], status)


class Driver:
    """A machine with a clock that stands still."""

    def __init__(self, random: Callable[[], float] = lambda: 0.0) -> None:
        self.now = 1000.0
        self.machine = Machine(lambda: self.now, random)
        self.pids = 100

    def add(self, name: str, **settings: object) -> None:
        self.machine.add(name, Settings(**settings), self.now)  # type: ignore[arg-type]

    def begin(self) -> "list[object]":
        self.machine.begin(self.now)
        return self.take()

    def take(self) -> "list[object]":
        return list(self.machine.take())

    def kinds(self) -> list[object]:
        """What is to be done: actions as they are, events by their class and service."""
        return [(type(one).__name__, one.service) if isinstance(one, ServiceEvent) else one for one in self.take()]

    def up(self, *names: str) -> None:
        for name in names:
            self.pids += 1
            self.machine.started(name, self.pids, self.now)
        self.take()

    def exit(self, name: str, status: int = 0) -> None:
        self.machine.exited(name, result(status), self.now)

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.machine.tick(self.now)

    def state(self, name: str) -> State:
        return self.machine.state(name)


def running(**options: object) -> Driver:
    """One service, named a, which runs and has said what it has to say."""
    driver = Driver()
    driver.add("a", **options)
    driver.begin()
    driver.up("a")
    return driver


# ── start ──


def test_machine_before_begin_does_nothing():
    driver = Driver()
    driver.add("a")
    assert [] == driver.take()
    assert not driver.machine.finished


def test_machine_begin_launches():
    driver = Driver()
    driver.add("a")
    assert [Launch("a")] == driver.begin()
    assert State.STARTING == driver.state("a")


def test_machine_started_without_readiness_is_ready():
    driver = Driver()
    driver.add("a")
    driver.begin()
    driver.machine.started("a", 7, driver.now)
    assert [ServiceStarted("a", 1000.0, 7), ServiceReady("a", 1000.0)] == driver.take()
    assert 7 == driver.machine.status()["a"].pid


def test_machine_added_while_running_launches_at_once():
    driver = running()
    driver.add("b", after=("a",))
    assert [Launch("b")] == driver.take()


def test_machine_after_waits_for_readiness():
    driver = Driver()
    driver.add("a", waits=True)
    driver.add("b", after=("a",))
    assert [Launch("a")] == driver.begin()
    driver.up("a")
    assert "waits for a" == driver.machine.status()["b"].text
    driver.machine.ready("a", driver.now)
    assert [("ServiceReady", "a"), Launch("b")] == driver.kinds()


def test_machine_after_a_task_that_ended_well_starts():
    driver = Driver()
    driver.add("a", waits=True)
    driver.add("b", after=("a",))
    driver.begin()
    driver.up("a")
    driver.exit("a", 0)
    assert [("ServiceExited", "a"), Launch("b")] == driver.kinds()


def test_machine_after_a_task_that_failed_never_starts_and_is_finished():
    driver = Driver()
    driver.add("a", waits=True)
    driver.add("b", after=("a",))
    driver.begin()
    driver.up("a")
    driver.exit("a", 1)
    assert [("ServiceExited", "a"), ("ServiceGaveUp", "a")] == driver.kinds()
    assert driver.machine.finished
    assert State.STOPPED == driver.state("b")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.add("a"), "name 'a' is taken"),
        (lambda d: d.add("c", after=("x",)), "after names 'x'"),
        (lambda d: d.add("c", after=("c",)), "circle: c after c"),
        (lambda d: d.machine.replace("a", Settings(after=("b",)), 0.0), "circle: a after b after a"),
        (lambda d: d.machine.replace("x", Settings(), 0.0), "no service 'x'; there are: a, b"),
        (lambda d: d.machine.restart("x", 0.0), "no service 'x'"),
        (lambda d: d.machine.remove("a", 0.0), "others come after it: b"),
    ],
)
def test_machine_wrong_argument_raises(call, message):
    driver = Driver()
    driver.add("a")
    driver.add("b", after=("a",))
    with pytest.raises(ValueError, match=message):
        call(driver)
    assert {"a", "b"} == set(driver.machine.names())


# ── restart ──


@pytest.mark.parametrize(
    ("policy", "status", "state"),
    [
        (Restart.never(), 0, State.STOPPED),
        (Restart.never(), 1, State.FAILED),
        (Restart.on_failure(), 0, State.STOPPED),
        (Restart.on_failure(), 1, State.BACKOFF),
        (Restart.on_failure(), -9, State.BACKOFF),
        (Restart.always(), 0, State.BACKOFF),
        (Restart.always(), 1, State.BACKOFF),
    ],
)
def test_machine_exit_follows_the_policy(policy, status, state):
    driver = running(restart=policy)
    driver.exit("a", status)
    assert state == driver.state("a")


def test_machine_backoff_doubles_to_its_maximum():
    driver = running(restart=Restart.always(backoff=1, backoff_max=5))
    delays = []
    for _ in range(5):
        driver.exit("a", 1)
        delays += [one.delay for one in driver.take() if isinstance(one, ServiceRestarting)]
        driver.after(delays[-1])
        assert [Launch("a")] == driver.take()
        driver.up("a")
    assert [1, 2, 4, 5, 5] == delays
    assert 5 == driver.machine.status()["a"].restarts


def test_machine_jitter_takes_up_to_half():
    driver = Driver(lambda: 1.0)
    driver.add("a", restart=Restart.always(backoff=1))
    driver.begin()
    driver.up("a")
    driver.exit("a", 1)
    assert [0.5] == [one.delay for one in driver.take() if isinstance(one, ServiceRestarting)]


def test_machine_backoff_counts_anew_after_stable_running():
    driver = running(restart=Restart.always(backoff=1, reset_after=10))
    for run, delay in ((1, 1), (1, 2), (10, 1)):
        driver.after(run)
        driver.exit("a", 1)
        assert [delay] == [one.delay for one in driver.take() if isinstance(one, ServiceRestarting)]
        driver.after(delay)
        driver.up("a")


def test_machine_no_backoff_restarts_in_the_same_turn():
    driver = running(restart=Restart.always(backoff=0))
    driver.exit("a", 1)
    assert [("ServiceExited", "a"), ("ServiceRestarting", "a"), Launch("a")] == driver.kinds()


def test_machine_limit_within_the_interval_gives_up():
    driver = running(restart=Restart.always(backoff=0, limit=2, interval=10))
    for _ in range(2):
        driver.exit("a", 1)
        driver.up("a")
    driver.exit("a", 1)
    assert [("ServiceExited", "a"), ("ServiceGaveUp", "a")] == driver.kinds()
    assert driver.machine.gave_up
    assert driver.machine.finished


def test_machine_limit_forgets_what_is_older_than_the_interval():
    driver = running(restart=Restart.always(backoff=0, limit=2, interval=10))
    for _ in range(5):
        driver.after(6)
        driver.exit("a", 1)
        driver.up("a")
    assert State.READY == driver.state("a")


def test_machine_a_very_long_row_of_failures_overflows_nothing():
    driver = running(restart=Restart.always(backoff=1, backoff_max=2, reset_after=100))
    for _ in range(2000):
        driver.exit("a", 1)
        driver.after(2)
        driver.up("a")
    assert 2000 == driver.machine.status()["a"].restarts


def test_machine_restart_of_a_failed_service_starts_it():
    driver = running()
    driver.exit("a", 1)
    driver.take()
    driver.machine.restart("a", driver.now)
    assert [Launch("a")] == driver.take()
    assert not driver.machine.gave_up


def test_machine_restart_of_a_running_service_stops_it_first():
    driver = running()
    driver.machine.restart("a", driver.now)
    assert [Signal("a", SIGTERM)] == driver.take()
    driver.exit("a", -15)
    assert [("ServiceExited", "a"), Launch("a")] == driver.kinds()


# ── readiness, watchdog, reload ──


def test_machine_not_ready_in_time_is_a_failure():
    driver = running(waits=True, ready_timeout=5.0, restart=Restart.on_failure(backoff=1))
    driver.after(5)
    assert [Signal("a", SIGTERM)] == driver.take()
    driver.exit("a", 0)
    events = driver.take()
    assert [ServiceExited, ServiceRestarting] == [type(one) for one in events]
    assert events[0].result.detail.startswith("not ready within 5 seconds")


def test_machine_extend_gives_more_time():
    driver = running(waits=True, ready_timeout=5.0)
    driver.machine.extend("a", 20, driver.now)
    driver.after(19)
    assert [] == driver.take()
    driver.after(1)
    assert [Signal("a", SIGTERM)] == driver.take()


def test_machine_probe_asks_until_it_is_well():
    driver = Driver()
    driver.add("a", waits=True, every=0.5)
    driver.begin()
    driver.machine.started("a", 1, driver.now)
    assert Probe("a") in driver.take()
    driver.machine.probed("a", False, "refused", driver.now)
    assert "refused" == driver.machine.status()["a"].text
    driver.after(0.5)
    assert [Probe("a")] == driver.take()
    driver.machine.probed("a", True, "", driver.now)
    assert [("ServiceReady", "a")] == driver.kinds()
    assert driver.machine.deadline() is None


def test_machine_probe_with_a_watchdog_goes_on():
    driver = Driver()
    driver.add("a", waits=True, every=0.5, watchdog=4.0)
    driver.begin()
    driver.up("a")
    driver.machine.probed("a", True, "", driver.now)
    driver.take()
    driver.after(2)
    assert [Probe("a")] == driver.take()
    driver.machine.probed("a", True, "", driver.now)
    for _ in range(3):
        driver.after(1)
        driver.machine.probed("a", False, "no", driver.now)
    assert [Probe("a")] == driver.take()[:1]
    driver.after(1)
    assert Signal("a", SIGABRT) in driver.take()


def test_machine_watchdog_without_a_sign_of_life_is_a_failure():
    driver = running(watchdog=3.0, restart=Restart.on_failure(backoff=0))
    driver.after(2)
    driver.machine.pinged("a", driver.now)
    driver.after(2)
    assert [] == driver.take()
    driver.after(1)
    assert [Signal("a", SIGABRT)] == driver.take()
    driver.exit("a", 0)
    assert [("ServiceExited", "a"), ("ServiceRestarting", "a"), Launch("a")] == driver.kinds()


def test_machine_watchdog_trigger_bites_at_once():
    driver = running(watchdog=3.0)
    driver.machine.trigger("a", driver.now)
    assert [Signal("a", SIGABRT)] == driver.take()


def test_machine_set_watchdog_counts_from_then():
    driver = running(watchdog=3.0)
    driver.machine.set_watchdog("a", 10, driver.now)
    driver.after(9)
    assert [] == driver.take()
    driver.machine.set_watchdog("a", 0, driver.now)
    driver.after(100)
    assert [] == driver.take()


def test_machine_reload_sends_its_signal():
    driver = running(reload=SIGHUP)
    driver.machine.reload("a", driver.now)
    assert [Signal("a", SIGHUP)] == driver.take()
    assert State.READY == driver.state("a")


def test_machine_reload_without_a_signal_restarts():
    driver = running()
    driver.machine.reload("a", driver.now)
    driver.exit("a", -15)
    assert Launch("a") in driver.take()


def test_machine_changes_of_files_are_gathered():
    driver = running(reload=SIGHUP)
    for _ in range(3):
        driver.machine.changed("a", driver.now)
        driver.after(DEBOUNCE / 4)
    assert [] == driver.take()
    driver.after(DEBOUNCE)
    assert [Signal("a", SIGHUP)] == driver.take()


def test_machine_reloading_is_ready_when_it_says_so():
    driver = running(waits=True, watchdog=1.0)
    driver.machine.ready("a", driver.now)
    driver.take()
    driver.machine.reloading("a")
    assert State.STARTING == driver.state("a")
    driver.after(500)
    driver.machine.ready("a", driver.now)
    assert [("ServiceReady", "a")] == driver.kinds()


# ── stop, remove, replace ──


def test_machine_stop_goes_in_reverse_order():
    driver = Driver()
    driver.add("a")
    driver.add("b", after=("a",))
    driver.add("c", after=("b",))
    driver.add("d", after=("a",))
    driver.begin()
    driver.up("a", "b", "d", "c")
    driver.machine.stop(driver.now)
    assert [Signal("c", SIGTERM), Signal("d", SIGTERM)] == driver.take()
    driver.exit("c")
    assert [("ServiceExited", "c"), Signal("b", SIGTERM)] == driver.kinds()
    driver.exit("b")
    assert [("ServiceExited", "b")] == driver.kinds()
    driver.exit("d")
    assert [("ServiceExited", "d"), Signal("a", SIGTERM)] == driver.kinds()
    driver.exit("a")
    driver.take()
    assert driver.machine.finished
    assert not driver.machine.gave_up


def test_machine_stop_kills_after_its_time_and_then_by_force():
    driver = running(stop_timeout=2.0, stop_signal=2)
    driver.machine.stop(driver.now)
    assert [Signal("a", 2)] == driver.take()
    driver.after(2)
    assert [Kill("a")] == driver.take()
    driver.after(FORCE_AFTER)
    assert [Force("a")] == driver.take()


def test_machine_stop_during_backoff_ends_it():
    driver = running(restart=Restart.always(backoff=5))
    driver.exit("a", 1)
    driver.machine.stop(driver.now)
    driver.take()
    driver.after(100)
    assert [] == driver.take()
    assert driver.machine.finished


def test_machine_stop_wins_over_a_restart_under_way():
    driver = running()
    driver.machine.restart("a", driver.now)
    driver.machine.stop(driver.now)
    driver.exit("a", -15)
    assert Launch("a") not in driver.take()
    assert State.STOPPED == driver.state("a")


def test_machine_kill_asks_nobody():
    driver = running()
    driver.machine.kill(driver.now)
    assert Kill("a") in driver.take()


def test_machine_begin_after_a_stop_starts_again():
    driver = running()
    driver.machine.stop(driver.now)
    driver.exit("a", -15)
    driver.take()
    assert [Launch("a")] == driver.begin()


def test_machine_remove_stops_and_forgets():
    driver = running()
    driver.machine.remove("a", driver.now)
    assert [Signal("a", SIGTERM)] == driver.take()
    with pytest.raises(ValueError, match="still being stopped"):
        driver.add("a")
    driver.exit("a")
    assert [("ServiceExited", "a"), Forget("a")] == driver.kinds()
    assert {} == driver.machine.status()


def test_machine_remove_during_backoff_forgets_at_once():
    driver = running(restart=Restart.always(backoff=5))
    driver.exit("a", 1)
    driver.take()
    driver.machine.remove("a", driver.now)
    assert [Forget("a")] == driver.take()
    driver.after(100)
    assert [] == driver.take()


def test_machine_replace_swaps_between_two_processes():
    driver = running()
    driver.machine.replace("a", Settings(stop_signal=3), driver.now)
    assert [Signal("a", SIGTERM)] == driver.take()
    driver.exit("a", -15)
    assert [("ServiceExited", "a"), Swap("a"), Launch("a")] == driver.kinds()
    driver.up("a")
    driver.machine.stop(driver.now)
    assert [Signal("a", 3)] == driver.take()


def test_machine_replace_of_a_stopped_service_starts_it():
    driver = running()
    driver.exit("a", 1)
    driver.take()
    driver.machine.replace("a", Settings(), driver.now)
    assert [Swap("a"), Launch("a")] == driver.take()


def test_machine_stopping_by_itself_then_follows_the_policy():
    driver = running(restart=Restart.always(backoff=0), stop_timeout=3.0)
    driver.machine.stopping("a", driver.now)
    assert State.STOPPING == driver.state("a")
    driver.after(3)
    assert [Kill("a")] == driver.take()
    driver.exit("a", -9)
    assert Launch("a") in driver.take()


def test_machine_time_that_stands_still_or_leaps_fires_each_timer_once():
    driver = running(restart=Restart.always(backoff=1))
    driver.exit("a", 1)
    driver.take()
    driver.after(0)
    assert [] == driver.take()
    driver.after(1e9)
    assert [Launch("a")] == driver.take()
    driver.machine.tick(0.0)
    assert [] == driver.take()


# ── any order of anything ──


class AnyOrder(RuleBasedStateMachine):
    """Does anything at any time; the machine must neither fail nor forget a process."""

    @initialize()
    def start(self) -> None:
        self.driver = Driver()
        self.machine = self.driver.machine
        self.alive: set[str] = set()
        self.count = 0

    def act(self) -> None:
        """Do what the machine wants; what it launches lives until the test ends it."""
        while self.machine.busy:
            for one in self.machine.take():
                if isinstance(one, Launch):
                    assert one.service not in self.alive, "launched twice"
                    self.alive.add(one.service)
                    self.count += 1
                    self.machine.started(one.service, self.count, self.driver.now)
                elif isinstance(one, Signal | Kill | Force | Probe):
                    assert one.service in self.alive, "a signal for nobody"
                elif isinstance(one, Forget):
                    assert one.service not in self.alive, "forgotten while it runs"

    @rule(
        policy=st.sampled_from([Restart.never(), Restart.always(backoff=0, limit=3), Restart.on_failure(backoff=1)]),
        waits=st.booleans(),
        watchdog=st.sampled_from([None, 2.0]),
        behind=st.booleans(),
    )
    def add(self, policy, waits, watchdog, behind):
        names = list(self.machine.names())
        name = f"s{len(names)}-{self.count}-{self.driver.now}"
        if name in names or len(names) > 8:
            return
        after = tuple(names[-2:]) if behind else ()
        try:
            self.driver.add(name, restart=policy, waits=waits, watchdog=watchdog, after=after, ready_timeout=3.0)
        except ValueError as error:
            assert "no service yet" in str(error)  # it is being removed
        self.act()

    @rule()
    def begin(self):
        self.machine.begin(self.driver.now)
        self.act()

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 5.0, 100.0]))
    def wait(self, seconds):
        self.driver.after(seconds)
        self.act()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, 1, -9]))
    def exit(self, data, status):
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(name)
        self.driver.exit(name, status)
        self.act()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), what=st.sampled_from(["ready", "pinged", "trigger", "stopping", "changed"]))
    def say(self, data, what):
        name = data.draw(st.sampled_from(sorted(self.alive)))
        getattr(self.machine, what)(name, self.driver.now)
        self.act()

    @precondition(lambda self: list(self.machine.names()))
    @rule(data=st.data(), what=st.sampled_from(["restart", "reload", "remove", "replace"]))
    def ask(self, data, what):
        name = data.draw(st.sampled_from(sorted(self.machine.names())))
        try:
            if what == "replace":
                self.machine.replace(name, Settings(restart=Restart.always(backoff=0.5)), self.driver.now)
            else:
                getattr(self.machine, what)(name, self.driver.now)
        except ValueError:
            assert what == "remove" or name in str(self.machine.names())
        self.act()

    @rule(what=st.sampled_from(["stop", "kill"]))
    def stop(self, what):
        getattr(self.machine, what)(self.driver.now)
        self.act()

    @invariant()
    def state_and_processes_agree(self):
        if not hasattr(self, "machine"):
            return
        states = {name: status.state for name, status in self.machine.status().items()}
        assert self.alive == {name for name, state in states.items() if state in RUNNING}
        active = self.alive or any(state is State.BACKOFF for state in states.values())
        assert not (active and self.machine.finished)
        assert self.machine.deadline() is None or self.machine.deadline() > self.driver.now

    def teardown(self):
        # Whatever happened before: it can be stopped, and then it is finished.
        if not hasattr(self, "machine"):
            return
        self.machine.stop(self.driver.now)
        self.act()
        for _ in range(50):
            if not self.alive:
                break
            self.driver.exit(self.alive.pop(), -15)
            self.act()
        assert self.machine.finished


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_machine_gave_up_event_has_the_result():
    driver = running()
    driver.exit("a", 4)
    gave_up = [one for one in driver.take() if isinstance(one, ServiceGaveUp)]
    assert [4] == [one.result.returncode for one in gave_up]
