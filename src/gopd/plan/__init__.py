"""What a recipe needs of a cluster, predicted before it runs: memory by role, time by phase, and what binds.

`sizes` a model from its configuration alone; `workload` what a step asks for; `memory` and `timing` what it takes;
`propose` the cluster section; `simulate` how step time grows with the cluster; `command` and `show` what users see.
"""
