"""HTTP and JSON in front of a balancer."""
