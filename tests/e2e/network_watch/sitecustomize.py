"""Record every attempt of a Python process to reach another host.

Python imports a module of this name at start when its folder is on PYTHONPATH, so that each
process of a federation, children included, is watched. One line an attempt is appended to the file
named by AURICLE_NETWORK_WATCH; loopback and Unix sockets are not attempts to leave the machine.
"""

import ipaddress
import os
import sys

_RECORD = os.environ.get("AURICLE_NETWORK_WATCH")
_LOOPBACK_NAMES = {"localhost", "", None}


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
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if _outside(host):
        line = f"{event} {host} {' '.join(sys.argv)[:200]}\n".encode()
        handle = os.open(str(_RECORD), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, line)
        os.close(handle)


if _RECORD:
    sys.addaudithook(_watch)
