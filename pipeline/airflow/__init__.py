"""The pipeline on Airflow: the section [airflow], and what deploy/airflow/biobert_cnn.py makes a DAG of."""
