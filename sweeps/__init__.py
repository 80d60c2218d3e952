"""The study's sweeps: `python -m sweeps NAME`."""
