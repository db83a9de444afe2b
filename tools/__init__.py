"""What makes committed artefacts; run by hand."""
