"""A federation of real processes over TLS whose network fails one site in the middle of a round.

Usage: network_story.py ROOT, as a process of its own. It asserts nothing: what happened goes to
ROOT/outcome.json, and the homes stay for the tests to look into.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.federation_run import (
    SITES,
    UPLOAD,
    WATCHED,
    Processes,
    Story,
    proxy_credential,
)
from tests.faults.faulty_proxy import FaultyProxy

SLOW_BYTES_S = 20_000.0
OTHERS = len(SITES) - 1


def held_upload(story: Story, proxy: FaultyProxy) -> str:
    """A job of one round whose update of the watched site has begun its way, and no more."""
    proxy.held.clear()
    proxy.hold(UPLOAD, let_by=1)  # the plan's answer passes
    job = story.job(1)
    story.wait_for(proxy.held.is_set)
    return job


def others_are_in(story: Story, job: str) -> dict[str, Any]:
    """The job's status once every update but the watched site's is admitted."""
    story.wait_for(lambda: story.status(job)["updates_admitted"] == OTHERS)
    return story.status(job)


def cut(story: Story, proxy: FaultyProxy) -> dict[str, Any]:
    """Every connection is reset while the update is on its way, and none can be made."""
    job = held_upload(story, proxy)
    proxy.cut()
    proxy.let_go()
    waiting = others_are_in(story, job)
    proxy.mend()
    return {"waiting": waiting, "end": story.end_of(job)}


def black_hole(story: Story, proxy: FaultyProxy) -> dict[str, Any]:
    """What is sent disappears while the update is on its way; nobody is told."""
    job = held_upload(story, proxy)
    proxy.swallow()
    proxy.let_go()
    waiting = others_are_in(story, job)
    story.wait_for(proxy.swallowed.is_set)
    proxy.mend()
    return {"waiting": waiting, "end": story.end_of(job)}


def slow(story: Story, proxy: FaultyProxy) -> dict[str, Any]:
    """The watched site's line carries some kilobytes a second for a whole job."""
    proxy.throttle(SLOW_BYTES_S)
    job = story.job(1)
    waiting = others_are_in(story, job)
    end = story.end_of(job)
    proxy.mend()
    return {"waiting": waiting, "end": end}


def killed_mid_upload(story: Story, proxy: FaultyProxy) -> dict[str, Any]:
    """kill -9 of the watched site, its update's head at the coordinator and its bytes not."""
    job = held_upload(story, proxy)
    process = story.running.pop(WATCHED).process  # else its death would end the story
    process.send_signal(signal.SIGKILL)
    process.wait()
    proxy.let_go()
    waiting = others_are_in(story, job)
    story.start(WATCHED, story.root / "sites" / WATCHED)
    return {"waiting": waiting, "end": story.end_of(job)}


ACTS: tuple[Callable[[Story, FaultyProxy], dict[str, Any]], ...] = (
    cut,
    black_hole,
    slow,
    killed_mid_upload,
)


def main(root: Path) -> None:
    """Play the acts in order on one federation."""
    outcome: dict[str, Any] = {}
    with Processes(os.environ) as server, Processes(os.environ) as sites:
        story = Story(root, server, sites)
        story.found()
        credential = proxy_credential(story.home)
        with FaultyProxy(story.port, *credential, story.home.ca_file) as proxy:
            story.join(proxy.port)
            for act in ACTS:
                with story.act(act.__name__):
                    outcome[act.__name__] = act(story, proxy)
                (root / "outcome.json").write_text(json.dumps(outcome))
            sites.stop()
            server.stop()
    outcome["seconds"] = story.seconds
    (root / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
