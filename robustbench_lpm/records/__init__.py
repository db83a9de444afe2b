"""Run records and audits as files. Knows nothing about torch."""
