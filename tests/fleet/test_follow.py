"""A stream over its breaks, from a gateway that is not there."""

from collections.abc import Iterable

import httpx
import pytest

from fleet.events import Event
from fleet.gateway import Gateway, Lost, Refusal
from tests.fleet.fake_gateway import in_no_time, problem


def followed(answers: Iterable[httpx.Response]) -> tuple[list[Event | Lost], list[str]]:
    """What a client sees of these answers one after the other, and the ids that it came back with."""
    coming, ids = iter(answers), []

    def answer(request: httpx.Request) -> httpx.Response:
        ids.append(request.headers.get("last-event-id", ""))
        return next(coming)

    async def follow() -> list[Event | Lost]:
        async with httpx.AsyncClient(base_url="http://mesh", transport=httpx.MockTransport(answer)) as http:
            return [event async for event in Gateway(http).follow("/events")]

    return in_no_time(follow()), ids


def stream(text: str) -> httpx.Response:
    return httpx.Response(200, text=text)


def test_a_stream_that_breaks_goes_on_after_the_last_event() -> None:
    events, ids = followed([stream("event: session\nid: 5\ndata: 1\n\n"), stream("event: end\nid: 6\ndata: {}\n\n")])
    assert events == [Event("session", 1, "5"), Lost("the stream ended", 0.2), Event("end", {}, "6")]
    assert ids == ["", "5"]


def test_whoever_comes_back_after_the_end_is_done() -> None:
    events, _ = followed([stream("event: session\nid: 5\ndata: 1\n\n"), httpx.Response(204)])
    assert events[-1] == Event("end", {})


def test_an_error_event_is_a_break_that_says_why() -> None:
    broken = (
        'event: error\ndata: {"title":"The stream broke","detail":"in words","reason":"STREAM_BROKEN","status":503}\n\n'
    )
    events, _ = followed([stream(broken), problem(502, "BALANCER_UNREACHABLE"), stream("event: end\ndata: {}\n\n")])
    assert [event.why for event in events if isinstance(event, Lost)] == [
        "The stream broke: in words (STREAM_BROKEN)",
        "None: in words (BALANCER_UNREACHABLE)",
    ]


def test_what_will_never_be_is_not_asked_for_again() -> None:
    with pytest.raises(Refusal, match="SESSION_NOT_FOUND"):
        followed([problem(404, "SESSION_NOT_FOUND")])
