"""Contract suites and fixtures, shipped so that third parties sit the same exams."""
