"""What leaves the library: records, one line each, and tables made of them."""

from .record import SCHEMA, Record, append, latest, make, read
from .table import Grid, Table

__all__ = ["SCHEMA", "Grid", "Record", "Table", "append", "latest", "make", "read"]
