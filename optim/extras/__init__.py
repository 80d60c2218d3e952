"""What a user opts into, and what only some models need."""
