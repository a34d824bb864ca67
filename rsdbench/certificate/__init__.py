"""Evidence that every registered method is lossless, and that the tests which say so would notice if it were not."""
