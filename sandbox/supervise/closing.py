"""Closing what services have sent, without waiting for what they made of it.

Facts, and what follows:
- The last close of a socket waits for as long as its maker wants (SO_LINGER, up to years), that of a file on FUSE for a
  program of its maker's. So a thread does it: a service that it waits for stops nobody else.
- What waits in the queue of a socket is closed with the socket. So that is closed there, too.
"""

import os
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

# Descriptors that wait for their turn; a service that has more is not listened to any more.
_MOST: Final = 512


class Closer:
    """Closes the descriptors that one service has sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: deque[int] = deque()
        self._works = False

    def close(self, fds: Iterable[int]) -> None:
        """Have descriptors closed soon; they are not the caller's any more."""
        with self._lock:
            self._left += fds
            if self._works or not self._left:
                return
            self._works = True
        threading.Thread(target=self._work, name="sandbox-close", daemon=True).start()

    @property
    def full(self) -> bool:
        """Whether more are left than may be."""
        return len(self._left) > _MOST

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._works = False
                    return
                fd = self._left.popleft()
            os.close(fd)
