"""
The plug-in for the Letta server. Only this package imports letta.

`features.py` lists what it consists of. Each feature names its seams: the places
in the server that it replaces or relies on. `install.py` checks all of them, and
then replaces them. `runtime.py` holds what is open while the server runs.
"""
