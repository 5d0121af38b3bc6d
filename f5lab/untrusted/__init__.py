"""Reading files from strangers: nothing in them is executed, any doubt refuses the file and names the rule.

Standard library alone, so that the process that reads (`file_reader`) can be bare. `weights_files` is the way in.
"""
