"""A site's live transcription, put together."""

from __future__ import annotations

import time

from client_node.inference import SiteTranscriber
from client_node.live.hearing import SiteEars
from client_node.live.service import LiveService
from client_node.live.voice import silero_network


def open_live(transcriber: SiteTranscriber) -> LiveService:
    """Live transcription with whatever release serves."""
    return LiveService(silero_network(), SiteEars(transcriber.current), time.monotonic)
