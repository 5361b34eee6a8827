"""The first thing that the fork server of the data workers imports.

A scheduler that asks a job to stop tells every process of it, and so does Ctrl-C. The server has to
outlive that: its workers, which are still needed to finish the step, end with it. It ends with the
training.
"""

import signal

for _wish in (signal.SIGTERM, signal.SIGINT):
    signal.signal(_wish, signal.SIG_IGN)
