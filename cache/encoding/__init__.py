"""Values to bytes and back: msgpack, envelopes, encryption."""
