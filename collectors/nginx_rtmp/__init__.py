"""Streams of nginx with its rtmp module."""
