"""The production view, picker, station and sharing on a seeded virtual clock in milliseconds."""
