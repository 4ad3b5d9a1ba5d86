"""The agent's machine: what a worker decides about slots, inputs and values. Pure; its shell is `daemon.agent`."""
