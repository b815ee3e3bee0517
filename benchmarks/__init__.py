"""Measurements that anybody can repeat; results are ratios within one run."""
