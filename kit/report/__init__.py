"""The report of finished runs: what they scored, where they fail, and what would change it."""
