"""Test chips that belong together: neighbours found by their borders, grids put together, seams read across."""
