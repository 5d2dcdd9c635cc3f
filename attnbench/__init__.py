"""attnbench: is an attention or KV-cache method really faster or smaller at decode time?"""

__version__ = "0.1.0"
