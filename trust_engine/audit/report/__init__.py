"""What an audit says: in JSON, in words, on a page, in the terminal."""
