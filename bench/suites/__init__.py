"""The suites of `trigru bench --suite`: what is measured besides a layer's time, and commands for one of them alone.

Timers and pairs come from `trigru.bench.measuring`; no suite imports the runner."""
