"""Checks every relative link in the repository's Markdown: the file and the heading must exist.

Run by `make check` as `python -m docs.check_links`. Links to other hosts are not followed: a check
of the tree must not need a network.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent


def broken_links(document: Path) -> Iterator[str]:
    """Describe each relative link of a document whose file or heading is missing."""
    for href in _hrefs(MarkdownIt("gfm-like", {"linkify": False}).parse(_text(document))):
        parts = urlsplit(href)
        if parts.scheme or parts.netloc:
            continue
        target = document.parent / unquote(parts.path) if parts.path else document
        if not target.exists():
            yield f"{document}: {href}: no such file"
        elif parts.fragment and parts.fragment not in headings(target):
            yield f"{document}: {href}: no such heading"


def headings(document: Path) -> set[str]:
    """Anchors of a document's headings, by the rule that code hosts use.

    Lower case, punctuation dropped, spaces to hyphens; a repeated heading gets -1, -2 and so on.
    """
    anchors: set[str] = set()
    tokens = MarkdownIt("commonmark").parse(_text(document))
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        plain = "".join(child.content for child in inline.children or [])
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        repeat = sum(1 for anchor in anchors if re.fullmatch(re.escape(slug) + r"(-\d+)?", anchor))
        anchors.add(f"{slug}-{repeat}" if repeat else slug)
    return anchors


def _hrefs(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        for child in token.children or []:
            if value := child.attrGet("href") or child.attrGet("src"):
                yield str(value)


def _text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def main() -> int:
    """Check the Markdown files that git tracks; 0 when every link holds."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    documents = [ROOT / name for name in listed.split("\0") if name]
    broken = [line for document in documents for line in broken_links(document)]
    sys.stderr.writelines(f"{line}\n" for line in broken)
    sys.stdout.write(f"{len(documents)} documents, {len(broken)} broken links\n")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
