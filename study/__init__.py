"""The whole study: its plan, the paper's claims with our verdicts, and the page of measured results."""
