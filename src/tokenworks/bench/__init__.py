"""Measures any OpenAI-compatible server the way a user would feel it. One client for ours and for peers."""
