"""A site with nothing in it, and what it says of itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import uvicorn

from client_node.api import make_app
from client_node.dictation.corrections import Corrections
from client_node.dictation.page import dictation_router
from client_node.home import SiteHome, SiteSettings
from client_node.http.server import server_config
from client_node.live.service import LiveService
from client_node.live.websocket import live_router
from client_node.status import ReceiptLine, SiteStatus
from tests.client_node.live.live_support import CountingEar, loudness_network

SITE = "<script>window.canary=1</script>"


class Transcribing:
    release = None

    def warm_up(self) -> None:
        pass

    def transcribe(self, path: Path):
        raise AssertionError("the page streams")


def empty_home(root: Path) -> SiteHome:
    home = SiteHome(root)
    home.create()
    SiteSettings(site="st-mary", base_folder="").save(home.settings)
    return home


def status() -> SiteStatus:
    return SiteStatus(
        site=SITE,
        coordinator_url="",
        recordings=12,
        subjects=3,
        ledger_entries=9,
        ledger_root="ab" * 32,
        budgets=(),
        receipts=(ReceiptLine("2026-01-01T00:00:00Z", "update", "0414", 3, 4096, "cd" * 32),),
        bytes_sent=4096,
        release=None,
    )


@contextlib.contextmanager
def serving(home, ear=None):
    """The site's service on a free port; gives its URL."""
    live = LiveService(loudness_network, ear or CountingEar(), time.monotonic)
    routers = [live_router(live), dictation_router(status, Corrections(home))]
    app = make_app(Transcribing(), status, routers=routers)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(app, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
