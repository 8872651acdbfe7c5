"""How good vectors are: the STS protocol of the papers and the result file that records it."""
