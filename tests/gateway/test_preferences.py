"""How long a client would rather wait, in the words of RFC 7240."""

import pytest

from gateway.preferences import wait_s


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (["wait=30"], 30),
        (["WAIT = 30"], 30),
        (['wait="30"'], 30),
        (["respond-async, wait=30"], 30),
        (["wait=30; foo=bar"], 30),
        (["return=minimal", "wait=30"], 30),
        (["wait=30, wait=1"], 30),
        (["wait=61"], 60),
        (["wait=999999999"], 60),
        (["wait=0"], 0),
        (["wait"], 0),
        (["wait=-1"], 0),
        (["wait=soon"], 0),
        (["wait=1.5"], 0),
        (["wait=1234567890"], 0),
        (['foo="a, wait=30"'], 0),
        (['foo="a'], 0),
        ([""], 0),
    ],
)
def test_a_wait_is_understood_or_ignored(said: list[str], seconds: int) -> None:
    assert wait_s(said) == seconds
