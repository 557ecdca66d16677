"""A small case of each table, to the last digit: the tables can be made again from their seeds."""

from random import Random

from benchmarks import caltech, pooling
from benchmarks.sim.month import Outcome
from benchmarks.sim.traces import acn, norway

VISITS = norway("2019-12")[:250]


def test_a_small_case_of_the_pooling_table() -> None:
    ours = pooling.run(VISITS, 60, "ours", "ours")
    assert ours == Outcome(99.78453649308395, 98.4, 0.9997146901937699, 0, 0)
    plain = pooling.run(VISITS, 60, "least utilisation", "least laxity")
    assert plain == Outcome(97.27897314834442, 85.6, 0.9908368258702708, 0, 0)


def test_a_small_case_with_wrong_departures() -> None:
    told = pooling.departures_wrong(VISITS, Random(1))
    got = pooling.run(told, 60, "ours", "ours", as_rated=VISITS)
    assert got == Outcome(98.70484935583617, 94.0, 0.9975714539286908, 0, 0)


def test_a_small_case_of_the_car_park_table() -> None:
    visits = acn()[:150]
    assert {policy: caltech.run(visits, 15, policy) for policy in caltech.OURS} == {
        "equal share": Outcome(69.86806732421653, 57.333333333333336, 0.8937076283830393, 0, 0),
        "earliest deadline": Outcome(76.14581464862735, 68.0, 0.9153156700722737, 0, 0),
        "least laxity": Outcome(77.2376382288762, 44.0, 0.8290495030369246, 0, 0),
        "ours": Outcome(76.9670207491976, 78.0, 0.9157833198350327, 0, 0),
    }
