"""Networks, and their common interface (`classifier.Classifier`)."""
