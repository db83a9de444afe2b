"""Cards, and from cards (or a user's own objects) to models, attacks and datasets. Every model is admitted here."""
