"""The embedded sample city: planned, painted, and filed as a challenge's."""
