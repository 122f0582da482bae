"""The command line: what `trigru COMMAND` does, and how it prints.

Nothing that is imported from elsewhere in the package lives here, but tables and threads, which trigru.bench shares."""
