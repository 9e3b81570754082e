"""A port for a process of a test."""

import errno
import random
import socket

FIRST, END = 20_000, 30_000
"""Ports that the kernel hands to nobody who asks for any free one (Linux takes 32 768 and up for that, others 49 152).

So nothing takes a port between its choice and its use, but for another process that draws the same one of 10 000.
"""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and that nothing gets by chance."""
    drawn = random.SystemRandom()
    while True:
        port = drawn.randrange(FIRST, END)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
            else:
                return port
