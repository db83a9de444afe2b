"""Cards, and from cards (or a user's own objects) to models, attacks and data sets. Every model is admitted here."""
