"""The study's statistics, tables and figures: `python -m analysis NAME`."""
