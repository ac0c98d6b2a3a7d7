"""RetinaFace, which finds faces in pictures: the network, and what turns its numbers into boxes."""
