"""The rules of a measurement: what a run is, what an attack may see, how results are graded, ranked and audited."""
