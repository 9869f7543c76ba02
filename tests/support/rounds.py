"""The round of `make faults` that a test runs in: what it draws at random is another in each round, and again the same.

`KVSTORE_FAULTS_SEED` is the round's seed. Without it every run draws the same.
"""

import os
import random

SEED = int(os.environ.get("KVSTORE_FAULTS_SEED", "0"))


def drawn(number: int) -> random.Random:
    """What draws the choices of one of a test's actors in this round."""
    return random.Random(SEED * 1_000_003 + number)
