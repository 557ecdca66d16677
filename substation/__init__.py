"""One substation: charges the cars that are plugged in, under a limit that it holds by itself."""
