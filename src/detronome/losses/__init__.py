"""The set-prediction loss: matcher, its terms, and the criterion that sums them."""
