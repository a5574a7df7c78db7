"""Fills the site's page. Every value is escaped; the template's text is the only markup."""

from __future__ import annotations

import html
import math
from importlib.resources import files
from string import Template

from client_node.status import BudgetLine, ReceiptLine, ReleaseLine, SiteStatus


def render_page(status: SiteStatus, nonce: str) -> str:
    """The page as HTML. `nonce` is the one its Content-Security-Policy names."""
    template = Template(files("client_node").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        nonce=html.escape(nonce),
        site=html.escape(status.site),
        recordings=f"{status.recordings:,}",
        subjects=f"{status.subjects:,}",
        entries=f"{status.ledger_entries:,}",
        root=html.escape(status.ledger_root),
        bytes_sent=f"{status.bytes_sent:,}",
        release=_release(status.release),
        budgets="".join(_budget(line) for line in status.budgets)
        or '<tr><td colspan="4">No budget has been used yet.</td></tr>',
        receipts="".join(_receipt(line) for line in status.receipts)
        or '<tr><td colspan="5">Nothing has left this site.</td></tr>',
    )


def _release(release: ReleaseLine | None) -> str:
    if release is None:
        return "<p>The base model serves: no release is active.</p>"
    rows = {
        "Release": release.release,
        "Job": release.job,
        "Rounds": str(release.rounds),
        "Issued": release.issued_at,
        "ε trusting nobody": f"{_number(release.epsilon_loc)} at δ = {release.delta:g}",
        "ε with secure aggregation": f"{_number(release.epsilon_sec)} at δ = {release.delta:g}",
    }
    cells = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in rows.items()
    )
    return f"<p>Signature and hashes verified.</p><dl>{cells}</dl>"


def _budget(line: BudgetLine) -> str:
    share = line.epsilon_spent / line.epsilon_cap if line.epsilon_cap else math.inf
    percent = min(share, 1.0) * 100
    purpose = html.escape(line.purpose)
    return (
        f'<tr><th scope="row">{purpose}</th>'
        f"<td>{_number(line.epsilon_spent)}</td><td>{_number(line.epsilon_cap)}</td>"
        f'<td><meter min="0" max="100" value="{percent:.1f}" '
        f'aria-label="budget of {purpose} spent">{percent:.0f} %</meter> {percent:.0f} %</td></tr>'
    )


def _receipt(line: ReceiptLine) -> str:
    return (
        f"<tr><td>{html.escape(line.at)}</td><td>{html.escape(line.kind)}</td>"
        f"<td>{html.escape(line.job)} / {line.round}</td><td>{line.size_bytes:,}</td>"
        f"<td><code>{html.escape(line.sha256)}</code></td></tr>"
    )


def _number(epsilon: float) -> str:
    return f"{epsilon:.2f}" if math.isfinite(epsilon) else "unbounded"
