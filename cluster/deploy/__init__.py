"""Ways to start a cluster."""
