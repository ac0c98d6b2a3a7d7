"""What goes wrong with one request alone."""


class ItemError(RuntimeError):
    """This video cannot be made, for a reason in its own request; the others of a batch can.

    The message is a sentence for people, and says the way out.
    """
