"""Inside a process that sends or runs jobs: what is seen, measured and written down."""
