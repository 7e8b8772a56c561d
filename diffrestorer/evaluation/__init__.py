"""The paper's comparison: suites, restoration, scores, tables and figures."""
