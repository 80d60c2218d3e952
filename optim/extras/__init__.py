"""What a user opts into, and what only some models and hosts need."""
