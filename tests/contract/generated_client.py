"""What a developer writes with a client that was generated from the document. Run by `test_client.py`, and typed."""

import sys

from gridmesh_client import Client
from gridmesh_client.api.charges import charge, get_charge, list_charges, stop_charge
from gridmesh_client.models import ChargeBody, ChargeReply, Problem, SessionList, SessionReply, SessionState


def main(url: str) -> None:
    """Charges a car, repeats that, reads it, finds it in a list, stops it, and reads a refusal."""
    with Client(base_url=url) as client:
        car = ChargeBody(vehicle_id="EV-001", energy_kwh=20.0, max_power_kw=11.0)
        first = charge.sync(client=client, body=car, idempotency_key="generated")
        again = charge.sync(client=client, body=car, idempotency_key="generated")
        assert isinstance(first, ChargeReply)
        assert isinstance(again, ChargeReply)
        session_id = first.session.session_id
        assert again.session.session_id == session_id
        assert first.placement.eligible == 3

        read = get_charge.sync(session_id, client=client)
        assert isinstance(read, SessionReply)
        assert read.session.state is SessionState.CHARGING

        page = list_charges.sync(client=client, vehicle_id="EV-001", state=[SessionState.CHARGING])
        assert isinstance(page, SessionList)
        assert [each.session_id for each in page.sessions] == [session_id]

        ended = stop_charge.sync(session_id, client=client)
        assert isinstance(ended, SessionReply)
        assert ended.session.state is SessionState.ENDED

        refused = charge.sync(client=client, body=ChargeBody(vehicle_id="EV-001", max_power_kw=-1.0))
        assert isinstance(refused, Problem)
        assert isinstance(refused.errors, list)
        assert refused.errors[0].pointer == "#/max_power_kw"


if __name__ == "__main__":
    main(sys.argv[1])
