"""The client's side: cars that charge through the gateway, over HTTP only."""
