"""The option that puts a home's database elsewhere, and the check that it is there."""

from __future__ import annotations

from typing import Annotated

import typer

from privacy.errors import StoreError

Database = Annotated[
    str,
    typer.Option(
        help="URL of a PostgreSQL database, postgresql://USER:PASSWORD@HOST/NAME; without it, "
        "SQLite in the home."
    ),
]


def reachable_database(url: str) -> str:
    """`url` once a connection to it has opened; "" stays what it is. Raises StoreError.

    The URL may hold a password, so that no error repeats it.
    """
    if not url:
        return url
    from sqlalchemy.exc import SQLAlchemyError

    from privacy.store import open_engine, reading

    engine = open_engine(url)
    try:
        with reading(engine) as session:
            session.connection()
    except SQLAlchemyError as error:
        raise StoreError(
            f"the database does not answer: {type(error.__cause__ or error).__name__}",
            remedy="check host, port, name, user and password with psql, then try again",
            code="database-unreachable",
        ) from None
    finally:
        engine.dispose()
    return url
