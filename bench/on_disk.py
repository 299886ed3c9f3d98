def on_disk():
    return []
