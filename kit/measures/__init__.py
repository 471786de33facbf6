"""How predicted buildings compare with true ones, counted as objects."""
