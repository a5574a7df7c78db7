"""Speaks a few recordings for two sites, for those who want to try the commands by hand.

Run as `python -m docs.sample_recordings FOLDER`. The speakers are eSpeak NG's, from the `demo`
extra; a site of your own imports people's recordings instead.
"""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path

from deploy.demo.corpus import INSTITUTIONS, site_utterances, synthesise

SITES = {"st-mary": "st-mary-hospital", "harbour-bank": "harbour-bank"}
TRAIN_SUBJECTS = 12
HELDOUT_SUBJECTS = 4


def main(folder: Path) -> None:
    """Write `folder`/SITE/manifest.jsonl and its audio for both sites."""
    by_name = {institution.name: institution for institution in INSTITUTIONS}
    for site, name in SITES.items():
        utterances = [
            *site_utterances(by_name[name], "train", TRAIN_SUBJECTS),
            *site_utterances(by_name[name], "heldout", HELDOUT_SUBJECTS),
        ]
        deque(synthesise(utterances, folder / site, workers=1), maxlen=0)
        sys.stdout.write(f"{len(utterances)} recordings: {folder / site / 'manifest.jsonl'}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
