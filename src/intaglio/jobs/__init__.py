"""Independent jobs: here, in processes beside each other, or on a cluster of Ray.

A `Pool` is an executor of `concurrent.futures`.  What runs in it are functions that can be
imported where they run, of arguments that can be pickled; results are the same whatever ran where.
"""

from .pool import Pool, Shared
from .run import Kept, Where, run_all

__all__ = ["Kept", "Pool", "Shared", "Where", "run_all"]
