"""VNBench under $STTM_DATA_ROOT, read when lmms-eval loads the task."""

from sttm_lmms.benchmarks.documents import TaskData

data = TaskData.load("vnbench")
dataset_kwargs = data.dataset_kwargs
metric_list = data.metric_list
process_docs = data.process_docs
