"""Tests."""

import os

# The tests start many processes beside gRPC's threads. grpcio's handlers of forks, which only a child that goes
# on using gRPC needs, now and then abort a child before it becomes what it was started for. Read when grpc is
# first imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
