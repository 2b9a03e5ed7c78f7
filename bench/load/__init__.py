"""The load: encoders, the streams they send, the sinks that take them."""
