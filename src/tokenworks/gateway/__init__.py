"""HTTP in and out: the OpenAI and Anthropic APIs. Text lives here; below this room everything is token ids."""
