"""Turns values into bytes and back: msgpack, envelopes, compression, encryption."""
