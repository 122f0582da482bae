"""From measured rows to the planner's constants.

Reads rows and writes tables for `trigru.planning.devices`; measures nothing."""
