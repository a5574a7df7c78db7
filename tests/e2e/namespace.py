"""A network namespace that holds nothing but loopback: from inside, no other host exists.

The kernel counts each attempt to send where no route leads, so that also native code, which a
Python hook cannot see, is caught when it tries.
"""

from __future__ import annotations

import fcntl
import shutil
import socket
import struct
import subprocess
from pathlib import Path

UNSHARE = ("unshare", "--map-root-user", "--net")
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40


def unshare_works() -> bool:
    """Whether this account may make namespaces here."""
    if shutil.which(UNSHARE[0]) is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def raise_loopback() -> None:
    """Bring `lo` up in a namespace just made."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING)
        fcntl.ioctl(handle, _SIOCSIFFLAGS, request)


def unroutable_attempts() -> int:
    """Packets of this namespace that had nowhere to go, IPv4 and IPv6, since it was made."""
    names, values = [
        line.split()
        for line in Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Ip:")
    ]
    v4 = int(values[names.index("OutNoRoutes")])
    lines = Path("/proc/net/snmp6").read_text().splitlines()
    v6 = [line.split()[1] for line in lines if "Ip6OutNoRoutes" in line]
    return v4 + sum(map(int, v6))
