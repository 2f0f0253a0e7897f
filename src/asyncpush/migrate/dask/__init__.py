"""The shards of a plan as the tasks of a Dask cluster, with the progress and the report of one machine."""
