"""The data of tasks: from any source to checked examples (`load.load_task`)."""
