"""The study's training entry: `python -m train --key=value ...`."""
