"""What crosses a socket, as bytes and back: messages, frames, the handshake, values. Nothing here does I/O."""
