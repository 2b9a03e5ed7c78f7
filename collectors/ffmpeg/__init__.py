"""FFmpeg's live progress."""
