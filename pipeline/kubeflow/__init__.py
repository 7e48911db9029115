"""The pipeline on Kubeflow Pipelines v2 and Vertex AI.

spec.py     the specification of a graph: every step a container, typed artifacts between them
target.py   `biobert-cnn compile`: what must hold before that, and the file
resolve.py  the first container of a run: what a local run looks up before and between its steps
step.py     every other container: one TFX executor
ledger.py   which data was approved, for the next run; there is no ML Metadata to ask
config.py   the section [kubeflow]
"""
