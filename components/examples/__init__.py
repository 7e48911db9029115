"""Step 1, ingest: labelled text in files → tf.Examples by split, with a dead-letter file for the bad rows.

Read in data order: `spans` (which files), `rows` (what a row is), `parse` (bytes → rows), `files` (files → work items
→ rows), `tfrecord` (rows → records), `ingest` (the Beam part), `leaks`, `component` (the TFX part).
"""
