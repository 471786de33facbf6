"""What a weights file may hold, judged before it is loaded."""
