"""What a notebook shows of clients, clusters and futures."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from cluster import Client, LocalCluster
from cluster.client.html import card


class Checker(HTMLParser):
    """Every tag is closed, and nothing is fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        assert tag not in ("script", "img", "link", "style", "iframe")
        assert {name for name, _ in attributes} <= {"style"}
        for _, style in attributes:
            assert "#" not in style and "rgb" not in style and "url" not in style
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def shown(thing: Any) -> str:
    page = thing if isinstance(thing, str) else thing._repr_html_()
    assert len(page) < 4000
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker.text


def test_every_text_is_escaped_and_cut() -> None:
    text = shown(card("<b>", [("<i>", "<script>alert(1)</script>"), ("long", "x" * 100_000)]))
    assert "<script>alert(1)</script>" in text


def test_client_cluster_and_futures(client: Client, local_cluster: LocalCluster) -> None:
    assert client.name in shown(client)
    assert local_cluster.scheduler_address in shown(local_cluster)
    futures = client.map(abs, range(3), key="<key>")
    client.gather(futures)
    assert "3 finished" in shown(futures)
    assert "<key>" in shown(futures[0])
    assert "finished" in shown(futures[0])
    many = client.map(abs, range(12_000))
    assert "the first 10000" in shown(many)
    future = futures[0]
    future.release()
    futures.release()
    assert "released" in shown(future)
    assert "released" in shown(futures)


def test_nobody_is_asked_for_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    future = client.submit(abs, -1)
    client.gather([future])
    sent: list[Any] = []
    monkeypatch.setattr(client._driver, "send", lambda: sent.append(1))
    monkeypatch.setattr(client._driver, "flush", lambda: sent.append(1))
    shown(client)
    shown(future)
    assert not sent
