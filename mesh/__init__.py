"""What every service shares. Nothing here knows a substation, a balancer or a gateway."""
