"""What an operator sees: what Prometheus asks and judges, what Grafana shows, and what to do about it."""
