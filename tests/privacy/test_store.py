"""Databases: what an error may say."""

from __future__ import annotations

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from privacy.store import open_engine, writing


def test_an_error_of_the_database_names_no_value(url):
    """A traceback reaches logs, and the values are subjects, texts and paths (I5)."""
    engine = open_engine(url)
    with pytest.raises(SQLAlchemyError) as caught, writing(engine) as session:
        session.execute(text("INSERT INTO nowhere VALUES (:who)"), {"who": "patient-0042"})
    assert "patient-0042" not in str(caught.value)
    engine.dispose()
