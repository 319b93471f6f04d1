"""Ends a process when one of those that it works with is lost.

Otherwise it would wait for the other in the next exchange, without end. Each
process holds a connection to the first one, which breaks when either of them
ends, however it ends, or is not heard of any more.
"""

import os
import secrets
import socket
import sys
import threading
import time

from mtf_moe.run import console

_SECONDS = 20  # Until a machine that is off is missed.
_DONE = b"."
_EXIT_CODE = 1
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_port(host: str, port: int):
  """Raises ValueError unless this machine can listen on a port."""
  try:
    _server(host, port).close()
  except OSError as error:
    raise ValueError(
        f"--coordinator: the port {port} of this machine, which is the first "
        f"process's, cannot be used ({error.strerror}): choose another."
    ) from None


def _server(host, port):
  """Listens on all addresses, but where the others are on this machine."""
  if host in LOOPBACK and host != "::1":
    return socket.create_server(("127.0.0.1", port))
  if socket.has_dualstack_ipv6():
    return socket.create_server(
        ("::1" if host == "::1" else "", port), family=socket.AF_INET6,
        dualstack_ipv6=host != "::1")
  return socket.create_server(("", port))


def end_at_once(status: int):
  """Ends this process without JAX's own end.

  That may hang, or abort, where others have gone before, and abort them.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


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

  def address(self, host: str) -> list | None:
    """Where the first process waits for others; None in these.

    Args:
      host: the name under which others reach it; "" for its own.

    Returns:
      the host, the port, and what to say there
    """
    if self._index:
      return None
    self._server = _server(host, 0)
    return [host or socket.gethostname(), self._server.getsockname()[1],
            secrets.token_hex(16)]

  def connect(self, address: list):
    """Connects processes, and begins to watch."""
    host, port, password = address
    length = len(password)
    if self._index:
      connection = socket.create_connection((host, port), timeout=_SECONDS)
      connection.sendall(password.encode() + self._index.to_bytes(4, "big"))
      self._watch(connection, 0)
      return
    with self._server:
      self._server.settimeout(2 * _SECONDS)
      while len(self._watched) < self._number - 1:
        connection, _ = self._server.accept()
        connection.settimeout(_SECONDS)
        said = connection.recv(length + 4, socket.MSG_WAITALL)
        if said[:length] == password.encode():
          self._watch(connection, int.from_bytes(said[length:], "big"))
        else:  # A stranger.
          connection.close()

  def close(self):
    """Ends the watch, when all processes do; the first one does so last."""
    self._closed.set()
    if self._index:
      for connection, _ in self._watched:
        connection.sendall(_DONE)
    else:
      for _, thread in self._watched:
        thread.join(_SECONDS)

  def abandon(self):
    """Ends this process, which others do not know yet, by a mistake."""
    if not self._closed.is_set():
      self._closed.set()
      end_at_once(_EXIT_CODE)

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
        "If it does not say why, it was lost: the same commands, of all "
        "processes, go on from the last checkpoint.")
    # The main thread may wait in an exchange for ever.
    end_at_once(_EXIT_CODE)
