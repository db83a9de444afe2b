"""Networks, and the one shape in which the rest of lpmbench sees them (`classifier.Classifier`)."""
