"""The service as a whole: starts a real SuperNode, stops it, and says why it cannot go on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading

import psutil
import pytest

from client_node.errors import LinkError
from client_node.home import SiteSettings
from client_node.service import run_site
from model_core.errors import WeightsError
from tests.client_node.fake_https import Authority, FakeCoordinator
from tests.client_node.harness import Site


@pytest.fixture
def enrolled(site: Site, fake: FakeCoordinator, authority: Authority) -> Site:
    """A site whose coordinator answers over TLS, though it speaks no Flower."""
    site.home.ca.write_text(authority.ca_pem)
    settings = SiteSettings.load(site.home.settings)
    dataclasses.replace(settings, coordinator_url=fake.url).save(site.home.settings)
    site.record("ann", "take one tablet")
    return site


def events(site: Site) -> list[str]:
    lines = (site.home.logs / "site.log").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("how", ["event", "SIGTERM", "SIGINT"])
def test_service_stops_in_order_and_leaves_no_process(enrolled: Site, how: str) -> None:
    before = children()
    stop = threading.Event()
    stages: list[str] = []

    def notify(stage: str) -> None:
        stages.append(stage)
        if stage == "ready":
            assert children() > before
            if how == "event":
                stop.set()
            else:
                os.kill(os.getpid(), signal.Signals[how])

    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_site(enrolled.home, stop=stop, notify=notify)
    assert stages == ["connecting", "preparing", "ready", "stopped"]
    assert children() == before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert events(enrolled)[-1] == "site-stopped"
    assert "tablet" not in (enrolled.home.logs / "supernode.log").read_text()


def test_revoked_site_ends_with_a_reason(enrolled: Site) -> None:
    # The coordinator answers 401, as it does once it has revoked the site.
    with pytest.raises(LinkError) as caught:
        run_site(enrolled.home)
    assert caught.value.code == "supernode-ended"
    assert "supernode.log" in caught.value.remedy


def test_wrong_checksum_of_the_base_is_named_before_anything_starts(enrolled: Site) -> None:
    settings = SiteSettings.load(enrolled.home.settings)
    dataclasses.replace(settings, base_sha256="0" * 64).save(enrolled.home.settings)
    before = children()
    with pytest.raises(WeightsError) as caught:
        run_site(enrolled.home)
    assert caught.value.code == "base-checksum"
    assert caught.value.remedy
    assert children() == before
