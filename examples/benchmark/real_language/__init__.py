"""Real requests: people's own words in film dialogues (ReDial)."""
