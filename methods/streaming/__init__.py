"""Parts of :mod:`methods.streamed`: taking a model apart, running it in chunks, planning how."""
