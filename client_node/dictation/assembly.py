"""Streaming and the dictation page of a site, put together."""

from __future__ import annotations

from fastapi import APIRouter

from client_node.dictation.corrections import Corrections
from client_node.dictation.page import dictation_router
from client_node.home import SiteHome
from client_node.inference import SiteTranscriber
from client_node.live.assembly import open_live
from client_node.live.rpc.server import Access, RpcServer, RpcSettings, rpc_router
from client_node.live.websocket import live_router
from client_node.status import collect_status


def dictation_routers(
    home: SiteHome, transcriber: SiteTranscriber, access: Access, rpc: RpcSettings | None
) -> list[APIRouter]:
    """What `make_app` takes to stream at /v1/audio/stream and to show the page at /.

    With `rpc` gRPC listens as well; `access` knows who may call it.
    """
    live = open_live(transcriber)
    page = dictation_router(lambda: collect_status(home), Corrections(home))
    routers = [live_router(live), page]
    if rpc is not None:
        routers.append(rpc_router(RpcServer(live, rpc, access)))
    return routers
