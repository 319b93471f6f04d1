"""Ends a process when one of those that it works with is lost.

Otherwise it would wait for the other in the next exchange, without end. Each
process holds a connection to the first one, which breaks when either of them
ends, however it ends, or is not heard of any more.
"""

import os
import socket
import threading
import time

from mtf_moe.run import console

_SECONDS = 20  # Until a machine that is off is missed.
_DONE = b"."
_EXIT_CODE = 1


class Watch:
  """The connections of one process."""

  def __init__(self, index: int, number: int):
    """Makes it.

    Args:
      index: which process this is.
      number: how many there are.
    """
    self._index = index
    self._number = number
    self._watched = []  # Connections, each with the thread that listens.
    self._closed = threading.Event()
    self._server = None

  def address(self, host: str | None) -> list | None:
    """Where the first process waits for others; None in these.

    Args:
      host: the name under which others reach it; None for its own.
    """
    if self._index:
      return None
    self._server = socket.create_server((host or "", 0))
    return [host or socket.gethostname(), self._server.getsockname()[1]]

  def connect(self, address: list):
    """Connects processes, and begins to watch."""
    if self._index:
      connection = socket.create_connection(address)
      connection.sendall(self._index.to_bytes(4, "big"))
      self._watch(connection, 0)
      return
    with self._server:
      for _ in range(self._number - 1):
        connection, _ = self._server.accept()
        self._watch(connection, int.from_bytes(
            connection.recv(4, socket.MSG_WAITALL), "big"))

  def close(self):
    """Ends the watch, when all processes do; the first one does so last."""
    self._closed.set()
    if self._index:
      for connection, _ in self._watched:
        connection.sendall(_DONE)
    else:
      for _, thread in self._watched:
        thread.join(_SECONDS)

  def wait(self):
    """Waits until a process that is lost is missed."""
    time.sleep(2 * _SECONDS)

  def _watch(self, connection, other):
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", _SECONDS // 2),
                          ("TCP_KEEPINTVL", _SECONDS // 4),
                          ("TCP_KEEPCNT", 2)):
      if hasattr(socket, option):  # Not on every system.
        connection.setsockopt(
            socket.IPPROTO_TCP, getattr(socket, option), value)
    thread = threading.Thread(
        target=self._listen, args=(connection, other), daemon=True)
    self._watched.append((connection, thread))
    thread.start()

  def _listen(self, connection, other):
    try:
      received = connection.recv(1)
    except OSError:
      received = b""
    if received == _DONE or self._closed.is_set():
      return
    console.fail(
        f"process {other} has ended, and process {self._index} ends with it. "
        "The same commands, of all processes, go on from the last checkpoint.")
    os._exit(_EXIT_CODE)  # The main thread may wait in an exchange for ever.
