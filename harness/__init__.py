"""The engine: cells, workers, probes, store, executors, command line. Knows no spiking mathematics."""
