"""The document says what is served, and is served."""

import re
from enum import StrEnum

import jsonschema_rs
import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from msgspec import Struct

from gateway import schemas, translate
from gateway.problems import _TITLES
from gridmesh.v1 import charging_pb2, load_pb2, operations_pb2
from tests.gateway.running import CAR, Gateway
from tests.gateway.test_bad_requests import a_problem


def names(enum: EnumTypeWrapper) -> set[str]:
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.DESCRIPTOR.name).upper() + "_"
    return {name.removeprefix(prefix) for name in enum.keys()} - {"UNSPECIFIED"}  # noqa: SIM118 - no dict


@pytest.mark.parametrize(
    ("words", "enum"),
    [
        (schemas.SessionState, charging_pb2.SessionState),
        (schemas.StopReason, charging_pb2.StopReason),
        (schemas.LimitReason, charging_pb2.LimitReason),
        (schemas.LimitSource, load_pb2.LimitSource),
        (schemas.NotAcceptingReason, load_pb2.NotAcceptingReason),
        (schemas.ReportState, operations_pb2.ReportState),
    ],
)
def test_the_words_are_those_of_the_contract(words: type[StrEnum], enum: EnumTypeWrapper) -> None:
    assert set(words) == names(enum)


# Fifty numbers that only a placement reads.
FOR_BALANCERS = {"evenly_kwh", "at_latest_kwh"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (schemas.Session, charging_pb2.Session),
        (schemas.Placement, charging_pb2.Placement),
        (schemas.LoadReport, load_pb2.LoadReport),
        (schemas.Limit, operations_pb2.Limit),
        (schemas.Substation, operations_pb2.Substation),
        (schemas.SessionList, charging_pb2.ListSessionsResponse),
    ],
)
def test_the_fields_are_those_of_the_contract(kind: type[Struct], message: type[Message]) -> None:
    assert set(kind.__struct_fields__) == {field.name for field in message.DESCRIPTOR.fields} - FOR_BALANCERS


def test_a_client_can_say_all_that_the_contract_lets_it() -> None:
    given_by_the_mesh = {"request_id", "owner", "attempt_id", "not_after"}
    said = {field.name for field in charging_pb2.ChargeRequest.DESCRIPTOR.fields} - given_by_the_mesh
    assert set(schemas.ChargeBody.__struct_fields__) == said


def test_a_word_that_is_not_known_yet_is_left_out() -> None:
    session = charging_pb2.Session(state=99, limit_reason=99, limit_source=99)  # type: ignore[arg-type]
    assert not translate.session(session).state


async def test_every_operation_of_the_document_is_served(gateway: Gateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    found = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert ("/v1/charges:batch", "post") in found
    assert len(found) == 18
    for path, method in found:
        if path.endswith("/events"):
            continue
        concrete = path.format(session_id="a", substation_id="a", source="ems")
        reply = await gateway.http.request(method, concrete, json=CAR)
        described = document["paths"][path][method]["responses"]
        assert str(reply.status_code) in described, (path, method, reply.text)
        media = reply.headers["content-type"]
        assert media in described[str(reply.status_code)]["content"]


async def test_every_reference_leads_somewhere(gateway: Gateway) -> None:
    reply = await gateway.http.get("/openapi.json")
    known = reply.json()["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", reply.text)) <= set(known)


async def test_refusals_are_documented_with_retry_after_and_the_key(gateway: Gateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    responses = document["paths"]["/v1/charges"]["post"]["responses"]
    assert set(responses) == {"200", "201", "400", "408", "409", "413", "415", "422", "429", "500", "503", "504"}
    assert set(responses["503"]["headers"]) == {"Retry-After", "Idempotency-Key", "Preference-Applied"}
    assert set(responses["201"]["headers"]) == {"Location", "Idempotency-Key", "Preference-Applied"}
    assert list(responses["503"]["content"]) == ["application/problem+json"]


# Told of what is no operation, in the stream of one, or only to balancers.
ELSEWHERE = {"PATH_NOT_FOUND", "METHOD_NOT_ALLOWED", "READER_TOO_SLOW", "ATTEMPT_NEWER"}


async def test_every_reason_is_shown_and_every_example_fits_its_schema(gateway: Gateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    shown: set[str] = set()
    for status, reply in (item for each in operations for item in each["responses"].items()):
        for media, content in reply.get("content", {}).items():
            schema = {**content["schema"], "components": document["components"]}
            examples = [each["value"] for each in content.get("examples", {}).values()]
            for example in [*examples, *([content["example"]] if "example" in content else [])]:
                jsonschema_rs.Draft202012Validator(schema).validate(example)
            if media == "application/problem+json":
                shown |= set(content["examples"])
                assert all(str(example["status"]) == status for example in examples)
    assert shown == set(_TITLES) - ELSEWHERE


async def test_the_example_of_the_document_charges_a_car(gateway: Gateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    example = document["paths"]["/v1/charges"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert (await gateway.post(example)).status_code == 201


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_pages_load_nothing_from_elsewhere(gateway: Gateway, path: str) -> None:
    reply = await gateway.http.get(path)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r'(src|href)="?(https?:)?//', reply.text)
    assert not re.search(r"<script>|javascript:|\son\w+=", reply.text), "a script that is no file"


async def test_the_live_page_runs_only_its_own_files(gateway: Gateway) -> None:
    page = await gateway.http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    found = re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text)
    assert {path.rpartition(".")[2] for path in found} == {"js", "css", "svg"}
    for path in found:
        reply = await gateway.http.get(path)
        assert reply.status_code == 200
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[path.rpartition(".")[2]]
        assert reply.headers["content-type"].startswith(kind)
        assert reply.headers["x-content-type-options"] == "nosniff"
        again = await gateway.http.get(path, headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == reply.headers["etag"]
    a_problem(await gateway.http.get("/page/index.html"), 404, "PATH_NOT_FOUND")


async def test_every_module_that_the_page_imports_is_served(gateway: Gateway) -> None:
    seen, coming = set(), ["/page/page.js"]
    while coming:
        path = coming.pop()
        seen.add(path)
        reply = await gateway.http.get(path)
        assert reply.status_code == 200, path
        coming += [
            f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', reply.text) if f"/page/{name}" not in seen
        ]
    assert len(seen) > 4


async def test_docs_lists_every_operation_and_type(gateway: Gateway) -> None:
    document = (await gateway.http.get("/openapi.json")).json()
    page = (await gateway.http.get("/docs")).text
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    for name in document["components"]["schemas"]:
        assert f'id="type-{name}"' in page


def test_titles_are_short_and_no_sentences() -> None:
    assert all(len(title) < 70 and not title.endswith(".") for title in _TITLES.values())
