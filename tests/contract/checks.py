"""What `schemathesis.toml` leaves open, looked at closely: a refusal of what fits the schema is known by its words."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import schemathesis
from schemathesis import CheckContext, Response

Case: TypeAlias = schemathesis.Case[Any]

# Rules between fields, about the present, or about what was said before.
MEANINGS = {
    ("departure_time", "must be in the future"),
    ("departure_time", "must be within 30 days"),
    ("departure_in", "must be above 0 and at most 30 days"),
    ("departure_in", "must not be given together with departure_time"),
    ("min_power_kw", "must not be above max_power_kw"),
    ("start_at", "must be from 1970 to 9999"),
    ("end_at", "must be in the future and after the start"),
    ("page_token", "must be a next_page_token of an earlier reply, or empty"),
}
# The grid is full or drained, or knows no such substation: only a charge can hear it.
NO_ROOM = {"NO_CHARGE_POINT", "FLOOR_ABOVE_LIMIT", "TOO_MANY_WAITING", "NOT_ACCEPTING", "NO_SUBSTATION"}
CHARGES = {"charge", "charge_batch", "get_readiness"}


@schemathesis.check
def refused_for_its_meaning(ctx: CheckContext, response: Response, case: Case) -> None:
    """What fits the schema is refused only for what no schema can say, and a key for its other request."""
    del ctx
    if not _fits(case):
        return
    for problem in _problems(response):
        if problem["status"] == 422:
            assert problem["reason"] == "KEY_REUSED", problem
        if problem["status"] == 400:
            said = {(error["field"], error["detail"]) for error in problem["errors"]}
            assert said <= MEANINGS, said - MEANINGS


@schemathesis.check
def unavailable_for_want_of_room(ctx: CheckContext, response: Response, case: Case) -> None:
    """Nothing is 503 or worse on a mesh that is well, but a charge for which there is no room."""
    del ctx
    for problem in _problems(response):
        if problem["status"] >= 500:
            assert _operation(case) in CHARGES, problem
            assert problem["reason"] in NO_ROOM, problem
            assert problem["retry_after_s"] >= 1, problem


@schemathesis.check
def bad_items_are_refused(ctx: CheckContext, response: Response, case: Case) -> None:
    """A batch that does not fit the schema has an item that is refused."""
    del ctx
    meta = case.meta
    if _operation(case) == "charge_batch" and response.status_code == 200 and meta and not _fits(case):
        # 422: a key that belongs to another request is recognised before the rest is looked at.
        assert any(outcome["status"] in {400, 422} for outcome in response.json()), response.text


def _fits(case: Case) -> bool:
    return case.meta is not None and case.meta.generation.mode.is_positive


def _operation(case: Case) -> str:
    return str(case.operation.definition.raw["operationId"])


def _problems(response: Response) -> Iterator[dict[str, Any]]:
    """The response's problem, or those of a batch's items."""
    media = response.headers.get("content-type", [""])[0]
    if media == "application/problem+json":
        yield response.json()
    elif media == "application/json" and isinstance(outcomes := response.json(), list):
        yield from (outcome["problem"] for outcome in outcomes if "problem" in outcome)
