"""Video files through an image network, frame by frame. PyAV is imported at first use."""
