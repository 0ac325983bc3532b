"""The use cases behind the tasks, by stage.

Each takes the settings, the ports it needs and a console; none knows an SDK.
"""
