"""`python -m mesh.probe`: whether a service is well, for the health checks of containers.

`python -m mesh.probe 127.0.0.1:50051` asks grpc.health.v1, `python -m mesh.probe http://127.0.0.1:8080/readyz` wants
status 200. Exit code 0 when it is well, else 1 with a line that says what is wrong.
"""

import sys
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 3.0


def ask_http(url: str) -> str:
    """What is wrong; empty when it answers 200."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        return "" if response.status == 200 else f"{response.status} {response.read(500).decode(errors='replace')}"
    except (OSError, HTTPException) as error:
        return f"no answer: {error or type(error).__name__}"
    finally:
        connection.close()


def ask_grpc(target: str) -> str:
    """What is wrong; empty when it is SERVING."""
    # Only here: it takes longer than all of the other check.
    import grpc  # noqa: PLC0415
    from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: PLC0415

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its package has no types
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{error.code().name} {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if status == "SERVING" else status


def main(target: str) -> int:
    """0 when all is well, 1 when not, with one line that a container's health log keeps."""
    wrong = (ask_http if target.startswith("http://") else ask_grpc)(target)
    print(f"{target}: {wrong or 'well'}")  # noqa: T201 - for whoever reads the health log
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mesh.probe HOST:PORT | http://HOST:PORT/PATH")
    sys.exit(main(sys.argv[1]))
