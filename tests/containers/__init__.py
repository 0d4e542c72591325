"""
Starts the whole compose file in containers and breaks it: `make compose-test`.

Not part of `make test`: it takes minutes, and needs root, podman and a package mirror or a registry.
"""
