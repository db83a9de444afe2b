"""What our attacks and models cost beside other libraries': `python -m benchmarks`."""
