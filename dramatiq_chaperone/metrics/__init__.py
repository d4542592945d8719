"""What Prometheus scrapes.  The only package that imports prometheus_client."""
