"""The client's machine, without sockets or clocks: numbers, wants, gathering, what arrived."""
