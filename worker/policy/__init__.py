"""Pure decisions: no IO, no clock, no randomness of their own. Standard library only."""
