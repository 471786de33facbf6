"""What runs a frozen file: backends, their tuning, prediction of one image."""
