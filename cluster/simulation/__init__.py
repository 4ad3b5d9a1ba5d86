"""The whole cluster in one thread and virtual time, driven by a seed: the very machines of the daemons, faults and checks."""
