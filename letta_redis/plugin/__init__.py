"""
The plug-in for the Letta server. Only this package imports letta.

`features.py` lists its features. Each feature names its seams: the places in the
server that it replaces or relies on. `install.py` checks all seams, then replaces
them. `runtime.py` holds what is open while the server runs.
"""
