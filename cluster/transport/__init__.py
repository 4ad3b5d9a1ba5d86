"""Connections between processes: TCP for the daemons (asyncio) and for the client (plain blocking sockets)."""
