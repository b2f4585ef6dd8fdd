"""Grafana dashboards and Prometheus rules of tailspan, as data; ``python -m dashboards`` writes the files."""
