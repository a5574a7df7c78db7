"""Schemas of every room: what migrations make is what the program knows, on each engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text

from client_node.home import SiteHome, SiteSettings
from client_node.tables import SITE
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.lease import Lease
from coordinator.store import COORDINATOR, SiteRow, create_schema
from deploy.cli import main as cli
from privacy.errors import StoreError
from privacy.schema import PRIVACY, Schema
from privacy.store import open_engine, reading, writing
from tests.coordinator.fakes import FakeClock

SCHEMAS = (PRIVACY, COORDINATOR, SITE)
BY_ROOM = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.room)


@pytest.fixture
def engine(url):
    opened = open_engine(url)
    yield opened
    opened.dispose()


def execute(engine: Engine, *statements: str) -> None:
    with writing(engine) as session:
        for statement in statements:
            session.execute(text(statement))


def baseline(engine: Engine, schema: Schema) -> None:
    """The tables of the first version, as its migration made them."""
    with writing(engine) as session:
        command.upgrade(schema.config(session.connection()), "0001")


def from_before_revisions(engine: Engine, schema: Schema) -> None:
    """The tables of the first version, before the database said which it was."""
    baseline(engine, schema)
    execute(engine, f"DROP TABLE {schema.revision_table}")


def differences(engine: Engine, schema: Schema) -> list[object]:
    with engine.connect() as connection:
        options = {"version_table": schema.revision_table}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, schema.metadata))


def code_of(call, *arguments) -> str:
    with pytest.raises(StoreError) as caught:
        call(*arguments)
    assert caught.value.remedy
    return caught.value.code


@BY_ROOM
def test_a_new_database_and_an_upgraded_one_are_what_the_program_knows(engine, schema):
    baseline(engine, schema)
    moved = schema.upgrade(engine)
    assert (moved.before, moved.after) == ("0001", schema.head)
    assert differences(engine, schema) == []
    schema.open(engine)


@BY_ROOM
def test_a_new_database_has_the_tables_at_once(engine, schema):
    schema.open(engine)
    schema.open(engine)
    assert differences(engine, schema) == []
    moved = schema.upgrade(engine)
    assert (moved.before, moved.after) == (schema.head, schema.head)


@BY_ROOM
def test_tables_from_before_revisions_are_refused_until_they_are_upgraded(engine, schema):
    from_before_revisions(engine, schema)
    assert code_of(schema.open, engine) == "schema-older"
    assert schema.upgrade(engine).before is None
    assert differences(engine, schema) == []
    schema.open(engine)


def test_a_site_that_never_trained_lacked_tables_and_gets_them(engine):
    from_before_revisions(engine, SITE)
    execute(engine, "DROP TABLE peer", "INSERT INTO subject VALUES (1, 'ann', true, 0)")
    SITE.upgrade(engine)
    assert differences(engine, SITE) == []
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM subject")).scalars().all() == ["ann"]


def test_sites_of_the_first_version_stay_in_and_keep_their_ledgers(engine):
    baseline(engine, COORDINATOR)
    execute(engine, "INSERT INTO site VALUES ('k1', 'north', 'pem', 'node', 1000.5, NULL, NULL)")
    COORDINATOR.upgrade(engine)
    with reading(engine) as session:
        (row,) = session.scalars(select(SiteRow))
        assert (row.approved_at, row.ledger_key_id, row.revoked_at) == (1000.5, "k1", None)


@BY_ROOM
def test_tables_of_no_known_version_are_left_alone(engine, schema):
    from_before_revisions(engine, schema)
    table = sorted(set(schema.metadata.tables) & set(inspect(engine).get_table_names()))[0]
    execute(engine, f'ALTER TABLE "{table}" ADD COLUMN strange INTEGER')
    assert code_of(schema.upgrade, engine) == "schema-unknown"
    assert not inspect(engine).has_table(schema.revision_table)


@BY_ROOM
def test_a_newer_database_is_refused_and_left_alone(engine, schema):
    schema.open(engine)
    execute(engine, f"UPDATE {schema.revision_table} SET version_num = '9999'")
    assert code_of(schema.open, engine) == "schema-newer"
    assert code_of(schema.upgrade, engine) == "schema-newer"


def test_an_older_database_is_refused(engine):
    baseline(engine, COORDINATOR)
    assert code_of(COORDINATOR.open, engine) == "schema-older"


BROKEN = """
from alembic import op
revision, down_revision = "9000", "{head}"

def upgrade():
    op.execute("CREATE TABLE half_way (id INTEGER)")
    op.execute("INSERT INTO nowhere VALUES (1)")
"""


def test_an_upgrade_that_fails_half_way_changes_nothing(engine, tmp_path):
    PRIVACY.open(engine)
    folder = tmp_path / "100% of it"  # a per cent sign means something to an .ini file
    folder.mkdir()
    for script in PRIVACY.migrations.glob("r*.py"):
        (folder / script.name).write_text(script.read_text())
    (folder / "r9000_broken.py").write_text(BROKEN.format(head=PRIVACY.head))
    broken = dataclasses.replace(PRIVACY, migrations=folder)
    assert broken.head == "9000"
    with pytest.raises(Exception, match="nowhere"):
        broken.upgrade(engine)
    assert not inspect(engine).has_table("half_way")
    PRIVACY.open(engine)


def coordinator_home(folder: Path) -> CoordinatorHome:
    home = CoordinatorHome(folder / "coordinator")
    home.root.mkdir()
    CoordinatorSettings().save(home.settings_file)
    return home


def run_json(capsys, *arguments: str) -> tuple[int, dict]:
    status = cli.run([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_the_coordinators_command_upgrades_and_says_from_where(tmp_path, capsys):
    home = coordinator_home(tmp_path)
    engine = open_engine(home.database_url(home.settings()))
    baseline(engine, PRIVACY)
    baseline(engine, COORDINATOR)
    status, told = run_json(capsys, "coordinator", "upgrade", "--home", str(home.root))
    assert status == 0
    moved = {one["room"]: (one["before"], one["after"]) for one in told["upgrades"]}
    assert moved == {
        "privacy": ("0001", PRIVACY.head),
        "coordinator": ("0001", COORDINATOR.head),
    }
    create_schema(engine)
    engine.dispose()


def test_no_upgrade_beside_a_coordinator_that_runs(tmp_path, capsys, monkeypatch):
    home = coordinator_home(tmp_path)
    engine = open_engine(home.database_url(home.settings()))
    create_schema(engine)
    clock = FakeClock(4e9)  # long after this machine's time
    running = Lease(engine, clock)
    running.take(clock.wait)
    clock.wait(1.0)
    monkeypatch.setattr("time.sleep", lambda _: running.renew())
    status, told = run_json(capsys, "coordinator", "upgrade", "--home", str(home.root))
    assert (status, told["error"]["code"]) == (10, "coordinator-running")
    engine.dispose()


def test_the_sites_command_upgrades_a_home_from_before_revisions(tmp_path, capsys):
    home = SiteHome(tmp_path / "north")
    home.root.mkdir()
    SiteSettings(site="north", base_folder="base").save(home.settings)
    engine = open_engine(home.database_url)
    from_before_revisions(engine, PRIVACY)
    from_before_revisions(engine, SITE)
    status, told = run_json(capsys, "site", "upgrade", "--home", str(home.root))
    assert status == 0
    assert [(one["room"], one["before"]) for one in told["upgrades"]] == [
        ("privacy", None),
        ("site", None),
    ]
    engine.dispose()
