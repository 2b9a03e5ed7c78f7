"""The benchmark: runs streams, reads the agent over HTTP, says what the streams cost."""
