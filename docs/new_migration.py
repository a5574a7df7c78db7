"""Write a migration from the difference between a room's tables and its migrations so far.

python -m docs.new_migration privacy|coordinator|site REVISION SLUG "What changes."

REVISION is four digits, one more than the last. Read what it writes before it is committed:
Alembic sees tables, columns, types, indexes and keys, not what should become of the rows. Give a
new column that may not be null a server_default, for the rows that are there.
"""

from __future__ import annotations

import sys

from alembic import command
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from client_node.tables import SITE
from coordinator.store import COORDINATOR
from privacy.schema import PRIVACY

_TEMPLATE = '''"""{summary}"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {previous!r}


def upgrade() -> None:
    """Make the change."""
    {body}
'''


def main(room: str, revision: str, slug: str, summary: str) -> None:
    """Write the next migration of `room`'s tables beside the others."""
    schema = next(one for one in (PRIVACY, COORDINATOR, SITE) if one.room == room)
    previous = None
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        if any(schema.migrations.glob("r*.py")):
            command.upgrade(schema.config(connection), "head")
            previous = schema.head
        options = {"version_table": schema.revision_table}
        context = MigrationContext.configure(connection, opts=options)
        changes = produce_migrations(context, schema.metadata).upgrade_ops
        assert changes is not None
        body = render_python_code(changes, render_as_batch=True)
    path = schema.migrations / f"r{revision}_{slug}.py"
    path.write_text(
        _TEMPLATE.format(summary=summary, revision=revision, previous=previous, body=body)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
