"""What happened: run records and audits as files. Knows nothing about torch."""
