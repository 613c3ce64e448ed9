"""ONE: exact deduplication of any binary objects.

For: anyone with many binary objects, and the page engine. It calls the native core and numpy; it knows
nothing of processes. Equality is always that of all the bytes, never of a hash.
"""

from pageone.one.interner import Interner
from pageone.one.keys import KeyTree
from pageone.one.tree import SDTree
from pageone.one.unique import unique_rows

__all__ = ["Interner", "KeyTree", "SDTree", "unique_rows"]
