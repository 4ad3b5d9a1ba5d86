"""The blocking face of the cluster: Client, Future, FutureSequence, wait and as_completed."""
