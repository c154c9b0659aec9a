"""One cell on several devices: a process for each, started by torchrun's launcher, that train one batch together."""
