"""Run one task over many files: discovery, ledger, isolation of items, tables."""
