"""Engines below a client: where tasks run when there is no cluster of ours, by `Client(engine=…)`.

The client above an engine is the whole `Client` with its session. What the session has to say goes to a desk in the
same process (`desk.py`), a small scheduler for one client, instead of over a socket; the desk gives an engine
(`protocol.py`) one call after the other to run. So futures, graphs and errors are the same code, and the same pickles,
as on a cluster.
"""
