"""Requests that join and leave a running batch."""
