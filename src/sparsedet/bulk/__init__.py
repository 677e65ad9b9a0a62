"""Many images, from folders, lists, Parquet or S3 to Parquet; resumable, each image once.

`plan` says what is to be done and what is left, `work` does one part of it. On a cluster
`sparsedet.ray` gives the parts to workers.
"""

from __future__ import annotations

from .plan import Plan, load_plan, make_plan
from .work import PartDone, Wanted, do_part

__all__ = ["PartDone", "Plan", "Wanted", "do_part", "load_plan", "make_plan"]
