"""Runs migrations in the caller's transaction; `privacy.schema.Schema.config` hands it over.

Alembic executes this file. SQLite alters tables by copying them ("batch" mode), and its DDL is part
of the transaction because `privacy.store` begins it by itself.
"""

from __future__ import annotations

from alembic import context

_given = context.config.attributes
context.configure(
    connection=_given["connection"],
    target_metadata=_given["metadata"],
    version_table=_given["revision_table"],
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
