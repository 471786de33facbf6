"""Submissions: predict a test set, pack the archive, check and score masks."""
