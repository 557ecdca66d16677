"""Invariant 1 under random histories: cars, stops, limits, lost offers and restarts, in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.errors import Refused
from mesh.model import LimitSource, StopReason
from substation.completion import Completion
from substation.grants import claim
from substation.limits import Limit
from substation.load import required_w, sums
from substation.sessions import Session
from substation.sharing import EqualShare, SharingPolicy
from substation.station import STALL_MS, Memory
from substation.urgency import LeastLaxity
from tests.substation.rig import Rig, a_charge, a_config

RATED_W = 20_000
SOURCES = st.sampled_from([LimitSource.EMS, LimitSource.SO])


class NeverOver(RuleBasedStateMachine):
    """One substation of 20 kW, so that floors hardly fit and turns are taken."""

    policy: type[SharingPolicy] = EqualShare

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(a_config(rated_w=RATED_W, charge_points=12), policy=self.policy())
        self.count = 0
        self.shown: dict[str, int] = {}

    def live(self) -> list[Session]:
        return list(self.rig.station.sessions())

    @rule(max_w=st.integers(2_000, 22_000), kwh=st.floats(0.01, 20), stay_s=st.none() | st.integers(10, 4_000))
    def arrive(self, max_w: int, kwh: float, stay_s: int | None) -> None:
        self.count += 1
        floor_w = 1_380 if max_w <= 7_400 else 4_140
        leaves = None if stay_s is None else self.rig.now + stay_s * 1000
        charge = a_charge(str(self.count), max_w=max_w, floor_w=floor_w, energy_j=int(kwh * 3.6e6), departure_ms=leaves)
        try:
            self.rig.charge(charge)
        except Refused:
            return

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 100))
    def stop(self, which: int) -> None:
        session = self.live()[which % len(self.live())]
        self.rig.do(self.rig.station.stop(session.session_id, StopReason.REMOTE, self.rig.now))

    @rule(
        source=SOURCES,
        limit_w=st.integers(0, 25_000),
        later_s=st.integers(0, 60),
        for_s=st.none() | st.integers(1, 600),
    )
    def limit(self, source: LimitSource, limit_w: int, later_s: int, for_s: int | None) -> None:
        start = self.rig.now + later_s * 1000
        self.rig.set_limit(Limit(source, limit_w, start, None if for_s is None else start + for_s * 1000))

    @rule(source=SOURCES)
    def clear(self, source: LimitSource) -> None:
        self.rig.do(self.rig.station.clear_limit(source, self.rig.now))

    @rule(seconds=st.sampled_from([0.001, 0.5, 3, 11, 70, 1_000]))
    def wait(self, seconds: float) -> None:
        self.rig.run(seconds)

    @rule(seconds=st.sampled_from([2, 9, 15, 60, 3_600]))
    def stall(self, seconds: float) -> None:
        self.rig.stall(seconds)

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 100))
    def lose_offers(self, which: int) -> None:
        """A car that hears nothing any more: only its lease stops it."""
        self.rig.deaf.add(self.live()[which % len(self.live())].session_id)

    @rule()
    def restart(self) -> None:
        """The process dies and is back at once: cars go on as they were, under the leases that they hold."""
        for session in self.live():
            session.meter(self.rig.now, 1)
        memory = Memory(list(self.rig.station.sessions(include_ended=True)), self.rig.station.limits())
        self.count += 1
        self.rig = Rig(self.rig.config, memory=memory, seed=self.count, before=self.rig, policy=self.policy())

    @invariant()
    def every_grant_is_nothing_or_at_least_the_floor(self) -> None:
        for session in self.live():
            assert session.granted_w == 0 or session.charge.floor_w <= session.granted_w <= session.charge.max_w

    @invariant()
    def what_is_kept_up_with_every_change_is_what_a_look_at_every_session_finds(self) -> None:
        station = self.rig.station
        assert station._live.sums() == sums(self.live())
        reasons = [session.limit_reason for session in self.live() if session.active and session.limit_reason]
        assert sorted(station._live.curtailed()) == sorted(reasons)
        required = sum(required_w(session, station._now, 1) for session in self.live() if session.active)
        assert station.load().required_w == required
        due = [at for session in self.live() if (at := station._next_of(session)) is not None]
        assert station._live.next_due() == min(due, default=None)

    @invariant()
    def where_there_is_enough_for_all_the_shares_are_those_of_the_policy(self) -> None:
        active = [session for session in self.live() if session.active]
        limit_w = sum(session.wanted_w for session in active)
        shares = self.policy().share([claim(session, self.rig.now, 1) for session in active], limit_w, turn_over=False)
        assert shares == {session.session_id: session.wanted_w for session in active}

    @invariant()
    def grants_never_add_up_to_more_than_the_limit(self) -> None:
        load = self.rig.station.load()
        assert load.granted_w <= load.limit_w

    @invariant()
    def cars_never_draw_more_than_is_committed(self) -> None:
        assert self.rig.drawn_w() <= self.rig.committed_w()

    @invariant()
    def nothing_is_over_the_limit_outside_the_time_to_obey_a_cut(self) -> None:
        assert self.rig.station.load().over_limit_ms == 0

    @invariant()
    def no_register_runs_ahead_of_its_meter(self) -> None:
        """But for what flows in the time by which a process may be late without having stood still."""
        meters = self.rig.registers()
        for session in self.live():
            if session.active:
                assert (
                    session.delivered_at(self.rig.now, 1)
                    <= meters[session.session_id] + session.charge.max_w * STALL_MS
                )

    @invariant()
    def registers_never_go_back_nor_past_what_was_asked(self) -> None:
        for session in self.rig.station.sessions(include_ended=True):
            register = session.delivered_at(self.rig.now, 1) if session.live else session.delivered_mj
            assert self.shown.get(session.session_id, 0) <= register <= (session.target_mj or register)
            self.shown[session.session_id] = register


class NeverOverByLaxity(NeverOver):
    policy = LeastLaxity


class NeverOverByCompletion(NeverOver):
    policy = Completion


TestNeverOver = NeverOver.TestCase
TestNeverOverByLaxity = NeverOverByLaxity.TestCase
TestNeverOverByCompletion = NeverOverByCompletion.TestCase
for case in (TestNeverOver, TestNeverOverByLaxity, TestNeverOverByCompletion):
    case.settings = settings(max_examples=60, stateful_step_count=40)
