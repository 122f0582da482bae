"""What a reader sees of measured rows: tables, figures, the summary of a folder of results.

Reads rows; runs and measures nothing."""
