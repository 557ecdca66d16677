"""The dashboards as code. What Grafana reads is their JSON in observability/grafana/dashboards."""
