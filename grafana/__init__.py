"""Dashboards as code: ``python -m grafana`` writes ``dashboards/*.json``.  One module a dashboard; what they share is in ``parts``."""
