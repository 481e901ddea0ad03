"""Requests that duly sends to addresses which people name: HTTP tasks and webhooks."""
