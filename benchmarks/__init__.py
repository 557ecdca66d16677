"""Tables that compare routing and power sharing, made by running the production code on a virtual clock."""
