"""Which answers are whole, whatever is announced twice, refused or never ended."""

from __future__ import annotations

from types import SimpleNamespace

from coordinator import flower_link
from coordinator.flower_link import FlowerLink
from coordinator.uploads import Uploads


def test_an_answer_is_unfinished_from_its_announcement_until_its_last_object():
    uploads = Uploads(10)
    assert not uploads.unfinished("q")
    uploads.announce(["q"])
    assert uploads.unfinished("q")
    assert not uploads.begin("s", ["q"], ["a", "b"])
    assert not uploads.take("s", "a")
    assert uploads.unfinished("q")
    assert uploads.take("s", "b")
    assert not uploads.unfinished("q")


def test_an_answer_announced_again_after_a_lost_connection_is_whole_when_the_second_is():
    uploads = Uploads(10)
    for session in ("first", "second"):
        uploads.announce(["q"])
        assert not uploads.begin(session, ["q"], ["a"])
    assert uploads.take("first", "a")  # nothing of the second
    assert uploads.unfinished("q")
    assert uploads.take("second", "a")
    assert not uploads.unfinished("q")


def test_what_flower_refuses_or_has_already_is_not_waited_for():
    uploads = Uploads(10)
    uploads.announce(["refused", "known"])
    uploads.refuse(["refused"])
    assert uploads.begin("s", ["known"], [])
    assert not uploads.unfinished("refused")
    assert not uploads.unfinished("known")


def test_uploads_that_never_end_take_bounded_memory():
    uploads = Uploads(3)
    for number in range(10):
        uploads.announce([f"q{number}"])
        uploads.begin(f"s{number}", [f"q{number}"], ["a"])
    assert len(uploads) == 3
    assert [n for n in range(10) if uploads.unfinished(f"q{n}")] == [7, 8, 9]


def test_a_node_that_started_is_told_once_and_not_after_it_was_asked_anew():
    uploads = Uploads(3)
    for node in (1, 2):
        uploads.started(node)
    uploads.forget_started([1])
    assert uploads.take_started() == {2}
    assert uploads.take_started() == frozenset()


def test_the_link_fetches_what_is_whole_and_gives_up_what_a_restarted_site_was_asked(monkeypatch):
    pulled = []

    def pull(request, *_):
        pulled.extend(request.message_ids)
        return SimpleNamespace(messages_list=[], message_object_trees=[])

    monkeypatch.setattr(flower_link.runtime_handlers, "pull_messages", pull)
    link = object.__new__(FlowerLink)
    monkeypatch.setattr(
        link, "_running", lambda: SimpleNamespace(run_id=1, task=None), raising=False
    )
    link._flights = {"m": ("north", 1), "k": ("south", 1), "l": ("west", 1)}
    link._state, link._arriving = None, {}
    link._node_ids = {"north": 7, "south": 8, "west": 9}
    link.gate = SimpleNamespace(take_started=lambda: {7}, unfinished=lambda m: m == "k")
    deliveries = link.poll(["m", "k", "l"])
    assert sorted(pulled) == ["l", "m"]
    assert [(d.site, d.error_code) for d in deliveries] == [("north", "site-restarted")]
    assert sorted(link._flights) == ["k", "l"]
