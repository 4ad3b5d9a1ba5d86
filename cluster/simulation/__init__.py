"""The whole cluster in one thread and virtual time, driven by a seed: the daemons' own machines, faults and checks."""
