"""The first thing that the fork server of the data workers imports.

A scheduler that asks a job to stop tells every process of it. The server has to outlive that: its
workers, which are still needed to finish the step, end with it. It ends with the training.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
