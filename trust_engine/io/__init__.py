"""Files: written whole or not at all, and read with distrust.

files        atomic files, checks before the work, refusal of pickles
outputs      no output may be an input
safetensors  the one reader and the one writer
locks        locks between processes
"""
