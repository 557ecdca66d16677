"""Places each car on the least-loaded substation, on a view that it keeps true."""
