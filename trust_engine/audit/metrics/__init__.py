"""Distances between pictures, and figures with their uncertainty.

images     how far one picture, or a set of them, moved
lpips      LPIPS, by weights that the user supplies
intervals  rates and means with their intervals
"""
