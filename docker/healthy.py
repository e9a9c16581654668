#!/usr/bin/env python
"""Exit with 0 if a Flower program is up.

``healthy http://host:port``, ``healthy https://host:port ca.crt``, or ``healthy host:port`` for the gRPC health service
of a SuperExec.
"""

import ssl
import sys
import urllib.request

_SECONDS = 3


def main(address: str, ca: str | None = None) -> None:
    """Ask once; any failure ends the program with an error."""
    if "://" in address:
        context = ssl.create_default_context(cafile=ca) if address.startswith("https") else None
        urllib.request.urlopen(f"{address}/health", timeout=_SECONDS, context=context).close()  # noqa: S310 # of the compose file
        return
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(f"{address} is not serving")


if __name__ == "__main__":
    main(*sys.argv[1:])
