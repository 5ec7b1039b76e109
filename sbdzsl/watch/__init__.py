"""A folder that a camera writes into: each complete file is judged once, by a service that may be away for a while.

The folder itself is the spool: a file stays in it until it has been answered. The order of what is kept makes that hold
over a kill at any moment: first the verdict's line is written and synced, then the file is put away. A file that stands
there beside its line was answered already and is only put away; one without a line is sent again, under the same
idempotency key, so that the service may answer it from memory.

Polled, since network folders tell nobody of their changes. No net is loaded here.
"""

from sbdzsl.watch.inbox import Arrival, Done, Inbox, WatchSettings
from sbdzsl.watch.loop import Watch, idempotency_key
from sbdzsl.watch.verdict_file import VerdictFile

__all__ = ["Arrival", "Done", "Inbox", "VerdictFile", "Watch", "WatchSettings", "idempotency_key"]
