"""The suspects and what examines them: one detector for each way in which trainer and inference can disagree.

`factors` are the fields in which two recipes differ; `suspects` lists the detectors; `f5lab.diagnosis` runs them.
"""
