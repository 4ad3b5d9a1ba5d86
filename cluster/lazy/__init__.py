"""What is built first and computed later: delayed calls, raw graphs, drawings of both."""
