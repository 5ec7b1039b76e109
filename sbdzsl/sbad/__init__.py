"""SBAD, stage one: which surface is this, or is it none of those that were learnt?"""
