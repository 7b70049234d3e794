"""Request samples: from the servers' Redis streams into Parquet for good, and back as windows of rows.

`archive` moves entries, `frames` reads a stretch of time. Both sides share one layout under the store's root:

    samples/<model>/day=2013-07-01/<first id>_<last id>.parquet     the day on which the row happened (UTC)
    outcomes/<model>/day=2013-07-02/<first id>_<last id>.parquet    the day on which the outcome arrived

Belongs here: moving and reading samples and outcomes. May not: judge what they show. The ways in are
`archive` and `open_samples`.
"""

from flows.adapters.samples.archive import Archived, archive
from flows.adapters.samples.reading import Reading, open_samples, parquet_frames
from flows.adapters.samples.store import SampleStore

__all__ = ["Archived", "Reading", "SampleStore", "archive", "open_samples", "parquet_frames"]
