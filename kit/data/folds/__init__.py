"""Which tiles are held out together: folds, leaks, the ground they share."""
