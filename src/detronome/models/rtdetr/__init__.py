"""RT-DETRv2 (arXiv 2304.08069, 2407.17140): hybrid encoder, selected queries, deformable decoder."""
