"""The daemons' shells: they read sockets and pipes, ask a pure machine what to do, and do it."""
