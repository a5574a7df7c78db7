"""A process that appends to a ledger and acknowledges each entry once `append` has returned.

python ledger_appender.py FOLDER WRITER ENTRIES: the folder holds site.pem and auricle.db.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from privacy.ledger import Ledger
from privacy.signing import Identity
from privacy.store import open_engine


def main() -> None:
    folder, writer, entries = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    engine = open_engine(f"sqlite:///{folder / 'auricle.db'}")
    identity = Identity.load(folder / "site.pem")
    ledger = Ledger(engine, identity, "site/north", lambda: datetime.now(UTC))
    for number in range(entries):
        entry = ledger.append("round.opened", {"writer": writer, "number": number})
        sys.stdout.write(f"{entry.index}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
