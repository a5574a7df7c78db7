"""Record every attempt of a Python process to reach another host.

Python imports a module of this name at start when its folder is on PYTHONPATH, so that each
process of a federation, children included, is watched. The file named by AURICLE_NETWORK_WATCH gets
one line a process, "watching PID ARGUMENTS", and one an attempt, "attempt EVENT HOST ARGUMENTS";
loopback and Unix sockets are not attempts to leave the machine.
"""

import ipaddress
import os
import sys

_RECORD = os.environ.get("AURICLE_NETWORK_WATCH")
_LOOPBACK_NAMES = {"localhost", "", None}


def _note(line: str) -> None:
    handle = os.open(str(_RECORD), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(handle, f"{line} {' '.join(sys.orig_argv)[:300]}\n".encode())
    os.close(handle)


def _outside(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in _LOOPBACK_NAMES:
        return False
    try:
        address = ipaddress.ip_address(str(host))
    except ValueError:
        return True  # a name that has to be looked up elsewhere
    return not (address.is_loopback or address.is_unspecified)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if _outside(host):
        _note(f"attempt {event} {host}")


if _RECORD:
    _note(f"watching {os.getpid()}")
    sys.addaudithook(_watch)
