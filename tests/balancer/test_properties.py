"""What holds whatever happens in whatever order."""

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.admissions import Entry
from balancer.attempt import Answer, Ask, Attempt, Fail, Late, Lost, Refused, Resolve, State, Step, Unreached
from balancer.desk import Desk, Doubt, Fenced, Found
from balancer.view import Known, Load
from mesh import errors
from mesh.charge import Charge
from mesh.model import ErrorReason
from mesh.outlook import GRID_MS, NOTHING, Outlook, need_of
from tests.balancer.makers import (
    INTERVAL,
    NOW,
    address,
    attempt_id,
    charge,
    desk_of,
    entry,
    key,
    load,
    replied,
    session,
)

IDS = ("a", "b", "c")


@given(seed=st.integers(0, 2**32), cars=st.integers(1, 300), substations=st.integers(1, 8))
@settings(max_examples=60)
def test_equal_cars_are_even_even_when_all_are_picked_before_any_reply(seed: int, cars: int, substations: int) -> None:
    desk = desk_of(*(load(f"s{i}", free_charge_points=300) for i in range(substations)), seed=seed)
    counts = Counter({f"s{i}": 0 for i in range(substations)})
    for number in range(cars):
        step = Attempt(desk, key(number), attempt_id(number), lambda _, number=number: charge(number)).begin(NOW)  # type: ignore[misc]
        assert isinstance(step, Ask)
        counts[step.substation_id] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_unequal_ratings_end_within_one_car_of_each_other(seed: int) -> None:
    ratings = {"small": 50_000, "middle": 100_000, "large": 200_000}
    desk = desk_of(*(load(name, limit_w=limit, rated_w=limit) for name, limit in ratings.items()), seed=seed)
    for number in range(120):
        Attempt(desk, key(number), attempt_id(number), lambda _, number=number: charge(number)).begin(NOW)  # type: ignore[misc]
    ratios = [known.reserved_w / ratings[known.substation_id] for known in desk.view]
    assert max(ratios) - min(ratios) <= 11_000 / 50_000


def car(number: int) -> Charge:
    """Of different power; of every third it is not known how much energy it wants."""
    energy_j = None if number % 3 == 0 else (number % 7 + 1) * 3_600_000
    return charge(number, max_w=5_000 + number % 4 * 3_000, energy_j=energy_j, departure_ms=NOW + 7_200_000)


def promise(number: int) -> Outlook:
    """What a substation reports of that car; time stands still for it."""
    need = need_of(car(number), NOW, 1.0)
    return NOTHING if need is None else need.outlook()


def reserved(known: Known) -> Outlook:
    needs = [r.need for r in known.reservations.values() if r.need is not None]
    return sum((need.outlook() for need in needs), NOTHING)


class Truth:
    """A substation as it really is: every session at once on disk, each with its place in the stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = NOW
        self.sequence = 0
        self.sessions: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        self.fences: set[int] = set()
        self.told = 0

    def admit(self, number: int) -> bool:
        if number in self.fences:
            return False
        if number not in self.sessions and number not in self.ended:
            self.sequence += 1
            self.sessions[number] = self.sequence
        return True

    def end(self, number: int) -> None:
        """Power and plug are free; the key is remembered."""
        del self.sessions[number]
        self.sequence += 1
        self.ended[number] = self.sequence

    def entries(self, after: int) -> list[Entry]:
        """What the stream of admissions shows of it after that position."""
        live = [(number, at, None) for number, at in self.sessions.items()]
        ended = [(number, at, NOW) for number, at in self.ended.items()]
        return [
            entry(number, self.name, sequence=at, epoch=self.epoch, ended_at_ms=ended_at_ms)
            for number, at, ended_at_ms in live + ended
            if at > after
        ]

    def load(self, now: int) -> Load:
        return load(
            self.name,
            epoch=self.epoch,
            sequence=self.sequence,
            admission_sequence=self.sequence,
            generated_at_ms=now,
            demand_w=sum(car(number).max_w for number in self.sessions),
            free_charge_points=120 - len(self.sessions),
            ahead=sum((promise(number) for number in self.sessions), NOTHING),
        )


class Mesh(RuleBasedStateMachine):
    """One balancer and three substations; what is on its way may be late, lost or overtaken."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.truths = {name: Truth(name) for name in IDS}
        self.desk = Desk([address(name) for name in IDS], INTERVAL, Random(1))
        self.calls = 0
        self.asking: dict[int, tuple[Attempt, Ask, bool]] = {}
        self.resolving: dict[int, tuple[Attempt, Doubt]] = {}
        self.doubts: dict[Doubt, int] = {}
        self.old_reports: list[Load] = []
        for truth in self.truths.values():
            self._report(truth)
            self._snapshot(truth)

    def _report(self, truth: Truth) -> None:
        report = truth.load(self.now)
        self.old_reports.append(report)
        self.desk.reported(address(truth.name), report, self.now)

    def _snapshot(self, truth: Truth) -> None:
        self.desk.admissions_begin(address(truth.name), truth.name, self.now)
        self.desk.snapshot(truth.name, truth.entries(after=-1))
        settled, _ = self.desk.snapshot_end(address(truth.name), truth.name, truth.epoch, truth.sequence, self.now)
        truth.told = truth.sequence
        for one in settled:
            self._settled(one.doubt, one.outcome)

    def _settled(self, doubt: Doubt, outcome: Found | Fenced) -> None:
        number = self.doubts.pop(doubt)
        if number in self.resolving:
            attempt, _ = self.resolving.pop(number)
            self._next(number, attempt, attempt.after(outcome, self.now))

    def _next(self, number: int, attempt: Attempt, step: Step) -> None:
        match step:
            case Ask():
                self.asking[number] = (attempt, step, False)
            case Resolve(doubt):
                self.resolving[number] = (attempt, doubt)
                self.doubts[doubt] = number
            case Answer() | Fail():
                pass

    def _one(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.asking)))

    @rule(milliseconds=st.integers(0, 400))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds

    @rule()
    def a_car_asks(self) -> None:
        number = self.calls
        self.calls += 1
        attempt = Attempt(self.desk, key(number), attempt_id(number), lambda _: car(number))
        self._next(number, attempt, attempt.begin(self.now))

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def a_request_arrives(self, data: st.DataObject) -> None:
        number = self._one(data)
        attempt, ask, _ = self.asking[number]
        self.asking[number] = (attempt, ask, self.truths[ask.substation_id].admit(number))

    @precondition(lambda self: any(arrived for _, _, arrived in self.asking.values()))
    @rule(data=st.data())
    def a_reply_arrives(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, (_, _, arrived) in self.asking.items() if arrived)))
        attempt, ask, _ = self.asking.pop(number)
        after = self.truths[ask.substation_id].load(self.now)
        self._next(number, attempt, attempt.after(replied(after, number), self.now))

    @precondition(lambda self: any(not arrived for _, _, arrived in self.asking.values()))
    @rule(data=st.data(), reached=st.booleans())
    def a_request_is_refused_or_not_sent(self, data: st.DataObject, reached: bool) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, (_, _, arrived) in self.asking.items() if not arrived)))
        attempt, _, _ = self.asking.pop(number)
        refusal = Refused(errors.Refused(ErrorReason.NO_CHARGE_POINT, "full", 1_000))
        self._next(number, attempt, attempt.after(refusal if reached else Unreached(), self.now))

    @precondition(lambda self: self.asking)
    @rule(data=st.data())
    def a_request_or_its_reply_is_lost(self, data: st.DataObject) -> None:
        number = self._one(data)
        attempt, _, _ = self.asking.pop(number)
        self._next(number, attempt, attempt.after(Lost(), self.now))

    @precondition(lambda self: self.resolving)
    @rule(data=st.data())
    def a_deadline_passes(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.resolving)))
        attempt, _ = self.resolving.pop(number)
        self._next(number, attempt, attempt.after(Late(), self.now))

    @precondition(lambda self: self.doubts)
    @rule(data=st.data())
    def a_doubt_is_resolved(self, data: st.DataObject) -> None:
        doubt = data.draw(st.sampled_from(sorted(self.doubts, key=lambda doubt: doubt.key)))
        self._resolve(doubt)

    def _resolve(self, doubt: Doubt) -> None:
        number, truth = self.doubts[doubt], self.truths[doubt.substation_id]
        if number in truth.sessions or number in truth.ended:
            found = Found(truth.load(self.now), session(truth.name, number), attempt_id(number), reply="session")
            self._settled(doubt, self.desk.settle(doubt, found, self.now).outcome)
        else:
            truth.fences.add(number)
            self._settled(doubt, self.desk.settle(doubt, Fenced(), self.now).outcome)

    @precondition(lambda self: any(truth.sessions for truth in self.truths.values()))
    @rule(data=st.data())
    def a_session_ends(self, data: st.DataObject) -> None:
        places = [(name, number) for name, truth in self.truths.items() for number in truth.sessions]
        name, number = data.draw(st.sampled_from(places))
        self.truths[name].end(number)

    @rule(name=st.sampled_from(IDS))
    def a_report_arrives(self, name: str) -> None:
        self._report(self.truths[name])

    @rule(data=st.data())
    def an_old_report_arrives_again(self, data: st.DataObject) -> None:
        old = data.draw(st.sampled_from(self.old_reports))
        self.desk.view.report(address(old.substation_id), old, self.now)

    @rule(name=st.sampled_from(IDS))
    def admissions_arrive(self, name: str) -> None:
        truth = self.truths[name]
        news, truth.told = truth.entries(truth.told), truth.sequence
        settled, _ = self.desk.changes(address(name), name, truth.epoch, truth.sequence, news, self.now)
        for one in settled:
            self._settled(one.doubt, one.outcome)

    @rule(name=st.sampled_from(IDS))
    def a_substation_restarts(self, name: str) -> None:
        """What was on its way to it is lost; what it has on disk stays."""
        truth = self.truths[name]
        for number in [n for n, (_, ask, _) in self.asking.items() if ask.substation_id == name]:
            attempt, _, _ = self.asking.pop(number)
            self._next(number, attempt, attempt.after(Lost(), self.now))
        self.desk.disconnected(address(name))
        truth.epoch += 1
        truth.sequence = 0
        truth.sessions, truth.ended = dict.fromkeys(truth.sessions, 0), dict.fromkeys(truth.ended, 0)
        self._report(truth)
        self._snapshot(truth)

    @invariant()
    def reservations_are_never_negative_and_add_up(self) -> None:
        for known in self.desk.view:
            assert known.reserved_w == sum(r.demand_w for r in known.reservations.values()) >= 0

    @rule()
    def somebody_asks_what_is_reserved(self) -> None:
        for known in self.desk.view:
            assert known.reserved == reserved(known)
            assert min(*known.reserved.evenly_mj, *known.reserved.at_latest_mj) >= 0

    @rule(at=st.integers(1, len(GRID_MS) - 1))
    def somebody_asks_what_is_promised_around(self, at: int) -> None:
        for known in self.desk.view:
            ahead = NOTHING if known.load is None or known.load.ahead is None else known.load.ahead
            assert known.promised_mj(at) == (ahead + reserved(known)).evenly_mj[at - 1 : at + 1]

    @invariant()
    def no_key_has_two_sessions(self) -> None:
        counts = Counter(number for truth in self.truths.values() for number in truth.sessions)
        assert max(counts.values(), default=0) <= 1

    def teardown(self) -> None:
        """Everything in flight is lost, every doubt resolved, every report heard: the view is the truth."""
        while self.asking or self.doubts:
            for doubt in list(self.doubts):
                self._resolve(doubt)
            for number in list(self.asking):
                attempt, ask, _ = self.asking.pop(number)
                repeat = attempt.state is State.REPEATING
                outcome = replied(self.truths[ask.substation_id].load(self.now), number) if repeat else Lost()
                self._next(number, attempt, attempt.after(outcome, self.now))
        self.now += 1
        for name, truth in self.truths.items():
            self.admissions_arrive(name)
            self._report(truth)
            known = self.desk.view[address(name)]
            assert (known.reserved_w, known.reserved) == (0, NOTHING), known.reservations
            assert known.demand_w == truth.load(self.now).demand_w
            assert known.free_charge_points == 120 - len(truth.sessions)
            assert known.promise() == sum((promise(number) for number in truth.sessions), NOTHING).evenly_mj
        assert not self.desk.doubts


TestMesh = Mesh.TestCase
TestMesh.settings = settings(max_examples=60, stateful_step_count=40)
