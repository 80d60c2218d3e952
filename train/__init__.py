"""The study's training entry: `python -m train --key=value ...`."""

import os

# OpenMP reads this when torch is imported. Its threads then sleep while they wait, instead of spinning: two runs of two
# threads each, on two cores, take 13 s and not 102; one run alone takes 9 s instead of 8 (16 steps of sst2).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
