"""What carries a state from token to token."""
