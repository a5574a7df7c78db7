"""Schemas and their history: each room's tables, and the migrations that lead to them (Alembic).

A room owns its tables and a folder of migrations, one script a change; the database says in one
table a room (`privacy_schema`, ...) which was the last. An empty database gets today's tables at
once. Any other version than the program's own is refused and never guessed at: a newer program
upgrades an older database where its operator says so, and there is no way down.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, create_engine, inspect

from privacy.errors import StoreError
from privacy.ledger_tables import LogRow
from privacy.store import reading, writing

_ENVIRONMENT = Path(__file__).parent / "migrations" / "environment"


@dataclasses.dataclass(frozen=True)
class Upgrade:
    """What an upgrade did to one room's tables.

    Attributes:
        room: whose tables.
        before: revision found; None where there were no tables, or tables from before revisions.
        after: revision now.
    """

    room: str
    before: str | None
    after: str


@dataclasses.dataclass(frozen=True)
class Schema:
    """One room's tables.

    Attributes:
        room: name of the room; its revision lies in the table `ROOM_schema`.
        metadata: the tables as the program knows them.
        migrations: folder of the migration scripts, a line of revisions from a baseline.
    """

    room: str
    metadata: MetaData
    migrations: Path

    @property
    def head(self) -> str:
        """Revision of this program's tables."""
        return _line(self)[-1]

    @property
    def revision_table(self) -> str:
        """Name of the table that holds the database's revision."""
        return f"{self.room}_schema"

    def open(self, engine: Engine) -> None:
        """Make the tables in a database that has none of them; otherwise hold it to the head.

        Safe when processes start together. Raises StoreError "schema-older" or "schema-newer".
        """
        with reading(engine) as session:
            if self._revision(session.connection()) == self.head:
                return
        with writing(engine) as session:
            connection = session.connection()
            found = self._revision(connection)
            if found is None and not self._present(connection):
                self.metadata.create_all(connection)
                script = ScriptDirectory.from_config(self.config())
                self._context(connection).stamp(script, self.head)
            elif found != self.head:
                raise self._older() if found in (None, *self._known) else self._newer()

    def upgrade(self, engine: Engine) -> Upgrade:
        """Bring the tables to this program's revision, in one transaction: all of it or nothing.

        Tables from before there were revisions are taken over if they are the baseline's. Raises
        StoreError "schema-newer", or "schema-unknown" for tables that no version made.
        """
        with writing(engine) as session:
            connection = session.connection()
            found = self._revision(connection)
            if found is None:
                self._require_baseline(connection)
            elif found not in self._known:
                raise self._newer()
            command.upgrade(self.config(connection), "head")
        return Upgrade(self.room, found, self.head)

    def config(self, connection: Connection | None = None) -> Config:
        """Alembic's configuration for these migrations, run over `connection`."""
        config = Config()
        config.set_main_option("script_location", _escaped(_ENVIRONMENT))
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", _escaped(self.migrations))
        config.attributes.update(
            connection=connection, metadata=self.metadata, revision_table=self.revision_table
        )
        return config

    @property
    def _known(self) -> tuple[str, ...]:
        return _line(self)

    def _context(self, connection: Connection) -> MigrationContext:
        return MigrationContext.configure(connection, opts={"version_table": self.revision_table})

    def _revision(self, connection: Connection) -> str | None:
        return self._context(connection).get_current_revision()

    def _present(self, connection: Connection) -> set[str]:
        return set(self.metadata.tables) & set(inspect(connection).get_table_names())

    def _require_baseline(self, connection: Connection) -> None:
        """Tables without a revision must be as the first migration makes them."""
        present = self._present(connection)
        if not present:
            return
        blank = create_engine("sqlite://")
        with blank.begin() as scratch:
            command.upgrade(self.config(scratch), self._known[0])
            baseline = {name: _columns(scratch, name) for name in self._present(scratch)}
        blank.dispose()
        if any(_columns(connection, name) != baseline.get(name) for name in present):
            raise StoreError(
                f"the {self.room} tables are of no version that this program knows",
                remedy="upgrade with the version of Auricle that follows the one that made them, "
                "or put the backup back; nothing was changed",
                code="schema-unknown",
            )

    def _older(self) -> StoreError:
        return StoreError(
            f"the database's {self.room} tables are of an older version of Auricle",
            remedy="stop the service, back the database up, then run `auricle coordinator upgrade` "
            "or `auricle site upgrade`",
            code="schema-older",
        )

    def _newer(self) -> StoreError:
        return StoreError(
            f"the database's {self.room} tables are of a newer version of Auricle than this one",
            remedy="install that version again; there is no way down",
            code="schema-newer",
        )


def _columns(connection: Connection, table: str) -> set[str]:
    return {column["name"] for column in inspect(connection).get_columns(table)}


@functools.cache
def _line(schema: Schema) -> tuple[str, ...]:
    """Revisions of `schema`, oldest first."""
    script = ScriptDirectory.from_config(schema.config())
    return tuple(one.revision for one in script.walk_revisions())[::-1]


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")  # the parser of .ini files would read %(name)s


PRIVACY = Schema("privacy", LogRow.metadata, Path(__file__).parent / "migrations")
