"""Where a server cannot listen."""

from random import Random

import pytest
from prometheus_client import CollectorRegistry

from mesh.admission import Admission
from mesh.metrics import GrpcServerMetrics
from mesh.server import start_server
from mesh.settings import StartupError


@pytest.mark.parametrize("host", ["::1", "no-such-host.invalid"])
async def test_a_host_that_is_none_here_is_told_in_words(host: str) -> None:
    metrics, admission = GrpcServerMetrics(CollectorRegistry()), Admission(1, Random(1))
    with pytest.raises(StartupError) as caught:
        await start_server(host, 0, metrics, (), lambda _: None, admission)
    assert str(caught.value).startswith(f"cannot listen on {host}:0: ")
    assert "Unknown error" not in str(caught.value)
