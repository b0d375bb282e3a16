"""What the handle is made of, one file for each thing that it does; :class:`RequestMaskModel` puts it together."""
