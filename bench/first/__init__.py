"""The first minutes on a GPU: few measurements, those that decide most first. See bench/README.md."""
